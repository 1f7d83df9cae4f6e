# SPDX-License-Identifier: Apache-2.0
"""`flashjob device enroll`: who a device is, written into a cluster or into a trust directory."""

import asyncio
import json
import secrets
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from attestation import keys
from attestation.directory import TrustDirectory
from attestation.errors import Reject
from attestation.policy import AttestationPolicySpec, RootOfTrust
from flashjob import terminal
from flashjob.cli.place import BAUD, RESET, STUB, Baud, Reset, Stub, on_network, serial_settings
from flashjob.enrolment import Enrolment, device_spec, look
from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.trust_reasons import bench_error
from flashjob.wire.reasons import Reason

_FIRST_ANSWER_SECONDS = 15.0


def enroll(
    name: Annotated[str, typer.Argument(help="Name of the Device.")],
    anchor: Annotated[
        str, typer.Option(help="The device's UDS public key: a file (PEM or COSE_Key), or COSE_Key in hex.")
    ],
    policy: Annotated[str, typer.Option(help="Name of the AttestationPolicy that judges it.")],
    root_of_trust: Annotated[RootOfTrust, typer.Option(help="What its hardware can prove.")],
    port: Annotated[str | None, typer.Option(help="Serial port it is connected to now.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Network address now: HOST:PORT, with TLS https://HOST:PORT.")
    ] = None,
    match: Annotated[
        list[str] | None, typer.Option(help="Serial: KEY=VALUE of the port's Instance; repeatable. Cluster only.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE label of the Device; repeatable. Cluster only.")
    ] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Network: keep HOST:PORT for good, instead of where it is discovered.")
    ] = False,
    baud: Baud = BAUD,
    reset: Reset = RESET,
    stub: Stub = STUB,
    trust: Annotated[Path | None, typer.Option(help="Write into this trust directory instead of a cluster.")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="The cluster's kubeconfig.")] = None,
    context: Annotated[str | None, typer.Option(help="Context in the kubeconfig.")] = None,
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Namespace of the Device.")] = "default",
    grant_key: Annotated[
        Path | None,
        typer.Option(
            help="PEM public key that signs grants; default: ConfigMap flashjob-gateway, or the trust directory."
        ),
    ] = None,
) -> None:
    """Read the live chip, have it prove its key, and write the Device."""
    if (port is None) == (host is None):
        raise typer.BadParameter("give exactly one of --port and --host")
    if trust is None and kubeconfig is None and context is None:
        raise typer.BadParameter("say where to: --trust DIR, --kubeconfig FILE or --context NAME")
    pairs = {"match": _pairs(match or []), "label": _pairs(label or [])}
    if port is not None and trust is None and not pairs["match"]:
        raise typer.BadParameter("a serial device in a cluster needs --match KEY=VALUE: tty names move")
    key = read_anchor(anchor)
    host = on_network(host) if host is not None else None
    settings = serial_settings(baud, reset, stub)
    connection: dict[str, Any] = {"network": {"address": host} if fixed else {}}
    if port is not None:
        line = settings.model_dump(by_alias=True, exclude_defaults=True)
        connection = {"serial": {"match": pairs["match"] or {"UDEV_DEVNODE": port}, **line}}

    async def run() -> str:
        with tempfile.TemporaryDirectory(prefix="flashjob-") as folder:
            way: Transport = SerialTransport(port, Path(folder), settings) if port else NetworkTransport(host or "")
            try:
                if trust is not None:
                    return await _into_directory(trust, way, key, root_of_trust, policy, grant_key, connection)
                return await _into_cluster(
                    (kubeconfig, context, namespace),
                    name,
                    way,
                    key,
                    root_of_trust,
                    policy,
                    grant_key,
                    connection,
                    pairs["label"],
                )
            finally:
                await way.close()

    try:
        device_id = asyncio.run(run())
    except Reject as reject:
        if trust is not None:
            raise bench_error(reject, trust) from reject
        step = "check the AttestationPolicy and the grant key"
        raise FlashJobError(Reason.EVIDENCE_INVALID, str(reject), step) from reject
    terminal.console().print(
        f"enrolled [bold]{name}[/] {device_id} ({root_of_trust}, policy {policy})", highlight=False
    )


async def _into_directory(
    trust: Path,
    way: Transport,
    anchor: keys.PublicKey,
    tier: RootOfTrust,
    policy_name: str,
    grant_key: Path | None,
    connection: dict[str, Any],
) -> str:
    directory = TrustDirectory.create(trust)
    policy = directory.policy(policy_name)
    if policy is None:
        raise FlashJobError(
            Reason.POLICY_MISSING, f"{trust} has no policy {policy_name}", f"write policies/{policy_name}.yaml"
        )
    signer = _public(grant_key) if grant_key else directory.grant_key().public_key()
    enrolment = Enrolment(anchor, tier, policy_name, policy, keys.key_id(signer))
    spec = await _look(way, enrolment, connection)
    directory.enroll(spec)
    return str(spec["id"])


async def _into_cluster(
    where: tuple[Path | None, str | None, str],
    name: str,
    way: Transport,
    anchor: keys.PublicKey,
    tier: RootOfTrust,
    policy_name: str,
    grant_key: Path | None,
    connection: dict[str, Any],
    labels: dict[str, str],
) -> str:
    from flashjob.cluster.kubeapi import ApiError
    from flashjob.cluster.login import connect
    from flashjob.cluster.resources import ATTESTATION_POLICIES, CONFIG_MAPS, DEVICES

    kubeconfig, context, namespace = where
    api = await connect(kubeconfig, context)
    try:
        try:
            found = await api.get(ATTESTATION_POLICIES, namespace, policy_name)
        except ApiError as error:
            if error.status != 404:
                raise
            raise FlashJobError(
                Reason.POLICY_MISSING,
                f"there is no AttestationPolicy {namespace}/{policy_name}",
                "kubectl apply it first",
            ) from error
        policy = AttestationPolicySpec.model_validate_json(json.dumps(found["spec"]))
        if grant_key is not None:
            signer = _public(grant_key)
        else:
            signer = keys.from_pem((await api.get(CONFIG_MAPS, namespace, "flashjob-gateway"))["data"]["grant.pub"])
        enrolment = Enrolment(anchor, tier, policy_name, policy, keys.key_id(signer))
        spec = await _look(way, enrolment, connection)
        body = {
            "apiVersion": DEVICES.api_version,
            "kind": DEVICES.kind,
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": spec,
        }
        await api.create(DEVICES, namespace, body)
        return str(spec["id"])
    except ApiError as error:
        if not error.already_exists:
            raise
        raise FlashJobError(
            Reason.ALREADY_ENROLLED,
            f"there is a Device {namespace}/{name} already; it was left as it is",
            f"change it: kubectl edit device {name} -n {namespace}; or enroll under another name",
        ) from error
    finally:
        await api.close()


async def _look(way: Transport, enrolment: Enrolment, connection: dict[str, Any]) -> dict[str, Any]:
    facts = await look(
        way, enrolment, nonce=secrets.token_bytes(32), now=int(time.time()), seconds=_FIRST_ANSWER_SECONDS
    )
    return device_spec(enrolment, facts, connection)


def _public(path: Path) -> keys.PublicKey:
    try:
        return keys.from_pem(path.read_bytes())
    except (OSError, Reject) as error:
        raise typer.BadParameter(f"--grant-key {path} is no PEM public key: {error}") from error


def read_anchor(text: str) -> keys.PublicKey:
    path = Path(text)
    try:
        raw = path.read_bytes() if path.is_file() else bytes.fromhex(text)
        return keys.from_pem(raw) if raw.startswith(b"-----BEGIN") else keys.from_cose(raw)
    except (ValueError, OSError, Reject) as error:
        raise typer.BadParameter(f"--anchor is neither a key file nor a COSE_Key in hex: {error}") from error


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = dict(item.partition("=")[::2] for item in items)
    if wrong := [item for item in items if "=" not in item]:
        raise typer.BadParameter(f"{wrong[0]!r} is not KEY=VALUE")
    return pairs
