# SPDX-License-Identifier: Apache-2.0
"""Act 1, no cluster: pack, sign, flash at a bench. An honest device convinces the judge; a lying one does not."""

import secrets
import shutil
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from rich.console import Console

from attestation import keys
from attestation.directory import TrustDirectory
from attestation.policy import RootOfTrust
from firmware_pipeline import api
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.signing.keys import load_signer
from firmware_pipeline.signing.release import load_release_key
from flashjob.api.flashtask import Verdict
from flashjob.bench import Wish, flash_one
from flashjob.enrolment import Enrolment, device_spec, look
from flashjob.flasher.transports.base import Transport
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual.fleet import ReadyDevice
from flashjob.wire.gateway import DeviceResult
from flashjob.wire.pod import Before, Safety

from .fleet_process import FleetProcess
from .materials import APP_A, DemoDevice, Materials, dump

_HONEST: Final = DemoDevice("bench-honest", "esp32c3", "serial", "SelfReported", "bench")
_LIAR: Final = DemoDevice("bench-liar", "esp32s3", "network", "SignedBoot", "field")
_FIRST_ANSWER_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class BenchOutcome:
    """What became of one device at the bench."""

    device: str
    result: DeviceResult
    verdict: Verdict | None
    expected: str

    @property
    def reason(self) -> str:
        """The verdict's reason, else the flow's."""
        return self.verdict.reason if self.verdict else self.result.reason

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it must."""
        return self.reason == self.expected


def pack(materials: Materials, chips: list[str], name: str, version: str, layout: Path, sequence: int) -> str:
    """Pack one release for several chips into a layout, signed; the index digest."""
    builds = [materials.build(chip, materials.image(chip, name, version)) for chip in chips]
    pushed = api.push(
        load_builds([*chain.from_iterable(builds)]),
        f"oci:{layout}:{version}",
        signer=load_signer(materials.key("signer").read_bytes(), "ci"),
        release=api.Release(load_release_key(materials.key("release").read_bytes(), "owner"), sequence),
    )
    return pushed.index_digest


async def play(materials: Materials, directory: Path, console: Console) -> list[BenchOutcome]:
    """Play act 1 below `directory`. Raises FlashJobError, PipelineError or Reject where it cannot be played."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    trust = _trust(materials, directory / "trust")
    layout = directory / "layout"
    digest = pack(materials, [_HONEST.chip, _LIAR.chip], APP_A, "2.0.0", layout, 2)
    console.print(f"packed and signed {APP_A} 2.0.0 for two chips: [cyan]{digest[:26]}...[/]")
    spec = materials.fleet([_HONEST, _LIAR], directory)
    outcomes = []
    with FleetProcess(spec, directory) as fleet:
        for device, expected in ((_HONEST, "Proven"), (_LIAR, "MeasurementMismatch")):
            ready = fleet.devices[device.name]
            await enroll(trust, device.policy, ready, directory)
            if device is _LIAR:
                fleet.ask("behave", device.name, behaviour="RunsOldImage")
            wish = Wish(
                reference=str(layout),
                port=ready.link or None,
                host=ready.address if not ready.link else None,
                trust=trust.root,
                device=None,
                chip=None,
                before=Before.IDENTITY,
                safety=Safety(),
                plain_http=False,
            )
            console.print(f"[bold]{device.name}[/] ({device.chip}, {device.transport})")
            outcome = BenchOutcome(device.name, *await flash_one(wish, console), expected)
            style = "green" if outcome.reason == "Proven" else "red"
            console.print(f"  verdict: [{style}]{outcome.reason}[/]  {_said(outcome)}", highlight=False)
            outcomes.append(outcome)
    return outcomes


def _said(outcome: BenchOutcome) -> str:
    return outcome.verdict.message if outcome.verdict else outcome.result.message


def _trust(materials: Materials, root: Path) -> TrustDirectory:
    trust = TrustDirectory.create(root)
    if not (root / "grant.key").exists():
        trust.write_grant_key(keys.private_from_pem(materials.key("grant").read_bytes()))
    shutil.copy(materials.public("signer"), root / "signers" / "ci.pub")
    shutil.copy(materials.public("release"), root / "release" / "owner.pub")
    for name in ("field", "bench"):
        dump(root / "policies" / f"{name}.yaml", materials.policy(name, [_HONEST.chip, _LIAR.chip]))
    return trust


async def enroll(trust: TrustDirectory, policy_name: str, ready: ReadyDevice, directory: Path) -> None:
    """Make a device known to the trust directory, as `flashjob device enroll` does.

    Args:
        trust: holds the policy already.
        policy_name: judges the device from now on.
        ready: where it is, its key, its tier.
        directory: for temporary files.

    Raises:
        FlashJobError, Reject: it does not answer, or not as it must.
    """
    policy = trust.policy(policy_name)
    if policy is None:
        raise ValueError(f"policy {policy_name} was just written")
    enrolment = Enrolment(
        keys.from_cose(bytes.fromhex(ready.public_key)),
        RootOfTrust(ready.tier),
        policy_name,
        policy,
        keys.key_id(trust.grant_key().public_key()),
    )
    way: Transport = SerialTransport(ready.link, directory) if ready.link else NetworkTransport(ready.address)
    try:
        facts = await look(
            way,
            enrolment,
            nonce=secrets.token_bytes(32),
            now=int(time.time()),
            seconds=_FIRST_ANSWER_SECONDS,
        )
    finally:
        await way.close()
    connection = {"serial": {"match": {"UDEV_DEVNODE": ready.link}}} if ready.link else {"network": {}}
    trust.enroll(device_spec(enrolment, facts, connection))
