# SPDX-License-Identifier: Apache-2.0
"""``attest``: judge evidence on the command line, against a trust directory and without a cluster.

Exit codes: 0 proven; 1 rejected; 2 wrong usage; 3 accepted, but below the root of trust that the policy demands;
4 the trust directory or its policy cannot be used.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attestation import cose, dice_cbor, eat
from attestation.anchors import Floors
from attestation.directory import TrustDirectory
from attestation.errors import Code, Reject
from attestation.policy import Measurement
from attestation.verdict import Context, ExactNonce, Verdict
from attestation.verifier import verify as judge

PROVEN: Final = 0
REJECTED: Final = 1
USAGE: Final = 2
UNPROVEN: Final = 3
TRUST: Final = 4

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

EvidenceFile = Annotated[str, typer.Argument(metavar="EVIDENCE", help="File with the evidence; - reads stdin.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def default_trust() -> Path:
    """``$XDG_DATA_HOME/flashjob/trust``, or under ``~/.local/share``."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "flashjob" / "trust"


@app.command()
def verify(
    evidence: EvidenceFile,
    nonce: Annotated[str, typer.Option(help="The nonce that the device was asked with, in hex.")],
    trust: Annotated[Path | None, typer.Option(help="Trust directory.", show_default="user data directory")] = None,
    expect: Annotated[
        list[str] | None, typer.Option(help="Measurement that must run: sha256:HEX or sha512:HEX.")
    ] = None,
    boot_id: Annotated[list[str] | None, typer.Option(help="Boot id that must run, in hex.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge evidence: does it prove, fresh for this nonce, what an enrolled device runs?"""
    expected = frozenset(map(_measurement, expect)) if expect else None
    boot_ids = frozenset(_hex(value, "--boot-id") for value in boot_id) if boot_id else None
    exact = ExactNonce(_hex(nonce, "--nonce"))
    data = _input(evidence)
    try:
        store = TrustDirectory(trust or default_trust())
        try:
            device = store.by_anchor_id(eat.parse_evidence(data).anchor_id)
        except Reject as reject:
            if reject.code in (Code.STORE_INVALID, Code.STORE_UNAVAILABLE):
                raise
            device = None
        context = Context(
            device=device,
            policy=store.policy(device.policy) if device else None,
            nonce=exact,
            now=int(time.time()),
            floors=store.floors(device.ueid) if device else Floors(),
            last_confirmed=frozenset(store.confirmed(device.ueid)) if device else frozenset(),
            expected=expected,
            boot_ids=boot_ids,
        )
    except Reject as reject:
        Console(stderr=True).print(Text(str(reject)))
        raise typer.Exit(TRUST) from reject
    verdict = judge(data, context)
    if as_json:
        Console().print_json(json.dumps(_verdict_json(verdict)))
    else:
        _show(verdict)
    if not verdict.accepted:
        raise typer.Exit(TRUST if verdict.code is Code.POLICY_MISSING else REJECTED)
    raise typer.Exit(PROVEN if verdict.proven_at_tier else UNPROVEN)


@app.command()
def explain(evidence: EvidenceFile, as_json: AsJson = False) -> None:
    """Show what evidence says. Nothing is verified: it may all be a lie."""
    try:
        content = _explain(_input(evidence))
    except Reject as reject:
        Console(stderr=True).print(Text(str(reject)))
        raise typer.Exit(REJECTED) from reject
    if as_json:
        Console().print_json(json.dumps(content))
        return
    table = Table("what", "says", title="Not verified")
    for part, fields in content.items():
        for name, value in fields.items():
            table.add_row(Text(f"{part} {name}"), Text(str(value)))
    Console().print(table)


def main() -> None:
    """Entry point of ``attest``."""
    app()


def _explain(data: bytes) -> dict[str, dict[str, Any]]:
    envelope = eat.parse_evidence(data)
    content: dict[str, dict[str, Any]] = {"evidence": {"bytes": len(data), "anchor id": envelope.anchor_id.hex()}}
    for number, encoded in enumerate(envelope.certificates):
        certificate = dice_cbor.parse_certificate(encoded)
        layer: dict[str, Any] = {
            "issuer": certificate.issuer.hex(),
            "subject": certificate.subject.hex(),
            "algorithm": certificate.message.alg.name,
            "code": Measurement.of_hash(certificate.code_hash).full,
            "authority": certificate.authority_hash.hex(),
            "mode": certificate.mode.value,
        }
        if number == 0:
            layer["name"] = dice_cbor.read_bootloader_config(certificate.configuration).name
        else:
            config = dice_cbor.read_application_config(certificate.configuration)
            layer |= {"name": config.name, "security version": config.security_version}
            layer |= {"boot id": config.boot_id.hex(), "slot": config.slot}
            layer |= {"partition table": config.partition_table.hex(), "eFuses": f"{config.security_efuses:#010b}"}
        content[f"layer {number}"] = layer
    message = cose.parse(
        envelope.token,
        tagging=cose.Tagging.EITHER,
        protected=eat.PROTECTED_HEADERS,
        unprotected=eat.UNPROTECTED_HEADERS,
    )
    token = eat.read_token(eat.decode_claims(message.payload))
    content["token"] = {
        "nonce": token.nonce.hex(),
        "ueid": token.ueid.hex(),
        "software": f"{token.name} {token.version}",
        "model": token.hwmodel.decode("ascii", "backslashreplace"),
        "debug": token.debug_status.value,
        "slot state": token.slot_state.name,
        "boot": token.boot_count,
        "fence": token.fence,
        "owner keys": [key.hex() for key in token.owner_keys],
        "data images": {label: value.full for label, value in token.data_images.items()},
        "addresses": list(token.addresses),
    }
    return content


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    claims = verdict.claims
    return {
        "accepted": verdict.accepted,
        "provenAtTier": verdict.proven_at_tier,
        "code": verdict.code,
        "message": verdict.message,
        "tier": verdict.tier,
        "acceptance": verdict.acceptance,
        "unproven": list(verdict.unproven),
        "policyHash": verdict.policy_hash.hex() if verdict.policy_hash else None,
        "evidenceSha256": verdict.evidence_sha256.hex(),
        "device": {
            "id": claims.ueid.hex(),
            "application": claims.application,
            "version": claims.version,
            "measurement": claims.measurement.full,
            "bootloader": claims.bootloader.full,
            "securityVersion": claims.secure_version,
            "bootId": claims.boot_id.hex(),
            "slotState": claims.slot_state.name,
            "mode": claims.mode,
        }
        if claims
        else None,
        "trail": [{"rule": step.rule, "held": step.held, "detail": step.detail} for step in verdict.trail],
    }


def _show(verdict: Verdict) -> None:
    console = Console()
    for step in verdict.trail:
        mark = Text("ok  ", "green") if step.held else Text("NO  ", "bold red")
        console.print(mark, Text(f"{step.rule:13}"), Text(step.detail), soft_wrap=True, sep="")
    if verdict.proven_at_tier:
        console.print(Text("proven", "bold green"))
    elif verdict.accepted:
        console.print(Text("accepted, not proven", "bold yellow"))
    else:
        doc = verdict.code.doc if verdict.code else ""
        console.print(Text(f"rejected: {verdict.code}: {doc}", "bold red"), soft_wrap=True)
    for item in verdict.unproven:
        console.print(Text(f"not proven: {item}", "yellow"), soft_wrap=True)


def _input(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(eat.EVIDENCE_LIMIT + 1)
        with Path(name).open("rb") as file:
            return file.read(eat.EVIDENCE_LIMIT + 1)
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}") from error


def _hex(value: str, option: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise typer.BadParameter(f"{option} is not hex: {value}") from error


def _measurement(value: str) -> Measurement:
    name, _, digest = value.partition(":")
    try:
        measurement = Measurement.of_hash(bytes.fromhex(digest))
    except ValueError as error:
        raise typer.BadParameter(f"--expect {value}: {error}") from error
    if measurement.full != value.lower():
        raise typer.BadParameter(f"--expect {value}: {name} does not fit {len(digest) // 2} bytes")
    return measurement


if __name__ == "__main__":
    main()
