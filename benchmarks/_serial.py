# SPDX-License-Identifier: Apache-2.0
"""What a true verdict costs beside the plain tool: images of one size, to the same virtual device at a simulated line rate,
by turns by the plain esptool command line (the anchor) and by a whole attempt of ours. No two images share a sector, for
ours does not write again what is there already. What is compared:

- write: from the first block that esptool reports to the end of the last verification; ours includes the record that
  selects the slot, the anchor's does not.
- attempt: the anchor's whole process against ours from opening the artifact to the verdict, with attestation before
  and after, preflight, reboot and confirm.
"""

from __future__ import annotations

import asyncio
import io
import os
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from attestation import keys
from attestation.directory import TrustDirectory
from attestation.policy import RootOfTrust
from benchmarks.common import Report, median_ratio
from firmware_pipeline import api
from firmware_pipeline.esp import builder
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.signing.keys import load_signer
from firmware_pipeline.signing.release import load_release_key
from flashjob.bench import Wish, flash_one
from flashjob.demo.fleet_process import FleetProcess
from flashjob.demo.materials import APP_A, APP_OFFSET, DemoDevice, Materials, dump
from flashjob.enrolment import Enrolment, device_spec, look
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.wire.gateway import Stage
from flashjob.wire.pod import Before, Safety
from flashjob.wire.serial import SerialSettings

BAUD: Final = 921_600
PAGE: Final = 64 * 1024
FULL_BYTES, SMOKE_BYTES = 25 * PAGE, 12 * PAGE
"""1.6 MB; and half of it, where what is constant weighs twice."""
_DEVICE: Final = DemoDevice("bench-board", "esp32c3", "serial", "SelfReported", "bench")
_READY_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Run:
    """One write of the image, in wall-clock seconds and CPU seconds of the host's side."""

    whole: float
    write: float
    cpu: float


class Bench:
    """One virtual device at a simulated line rate, an enrolled owner, and releases to write."""

    def __init__(self, root: Path, image_bytes: int) -> None:
        self._root = root
        self._image_bytes = image_bytes
        self._materials = Materials.make(root / "materials")
        self._trust = self._make_trust()
        spec = self._materials.fleet([_DEVICE], root)
        spec["devices"] = [{**entry, "simulateRate": True} for entry in spec["devices"]]
        self.fleet = FleetProcess(spec, root)
        self.port = self.fleet.devices[_DEVICE.name].link
        self._slots = builder.default_partitions().ota_slots
        self._running = 0

    def _make_trust(self) -> TrustDirectory:
        trust = TrustDirectory.create(self._root / "trust")
        trust.write_grant_key(keys.private_from_pem(self._materials.key("grant").read_bytes()))
        shutil.copy(self._materials.public("signer"), trust.root / "signers" / "ci.pub")
        shutil.copy(self._materials.public("release"), trust.root / "release" / "owner.pub")
        dump(trust.root / "policies" / "bench.yaml", self._materials.policy("bench", [_DEVICE.chip]))
        return trust

    async def enroll(self) -> None:
        """As `flashjob device enroll` does."""
        ready = self.fleet.devices[_DEVICE.name]
        policy = self._trust.policy(_DEVICE.policy)
        assert policy is not None
        enrolment = Enrolment(
            keys.from_cose(bytes.fromhex(ready.public_key)),
            RootOfTrust.SELF_REPORTED,
            _DEVICE.policy,
            policy,
            keys.key_id(self._trust.grant_key().public_key()),
        )
        way = SerialTransport(self.port, self._root)
        try:
            nonce = secrets.token_bytes(32)
            facts = await look(way, enrolment, nonce=nonce, now=int(time.time()), seconds=_READY_SECONDS)
        finally:
            await way.close()
        self._trust.enroll(device_spec(enrolment, facts, {"serial": {"match": {"UDEV_DEVNODE": self.port}}}))

    def image(self, version: str) -> Path:
        """Build an image."""
        image = builder.build_app(_DEVICE.chip, APP_A, version, payload_size=self._image_bytes - 4096)
        assert len(image) == self._image_bytes
        file = self._root / f"{version}.bin"
        file.write_bytes(image)
        return file

    def release(self, number: int) -> Path:
        """Build and push release `number`: its layout."""
        version = f"2.{number}.0"
        file, layout = self.image(version), self._root / f"layout-{version}"
        api.push(
            load_builds([f"{_DEVICE.chip}:{APP_OFFSET:#x}={file}"]),
            f"oci:{layout}:{version}",
            signer=load_signer(self._materials.key("signer").read_bytes(), "ci"),
            release=api.Release(load_release_key(self._materials.key("release").read_bytes(), "owner"), number + 2),
        )
        return layout

    def plain(self, image: Path) -> Run:
        """The plain tool writes the image into the slot that does not run."""
        slot = self._slots[1 - self._running]
        arguments = ["--port", self.port, "--baud", str(BAUD), "write-flash", hex(slot.offset), str(image)]
        cpu, begun = _cpu(), time.monotonic()
        first = verified = 0.0
        said = []
        with subprocess.Popen(
            [sys.executable, "-m", "esptool", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ESPTOOL_CFGFILE": os.devnull, "PYTHONUNBUFFERED": "1"},
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                now = time.monotonic()
                first = first or (now if "Writing at" in line else 0.0)
                verified = now if "Hash of data verified" in line else verified
                said.append(line)
        whole = time.monotonic() - begun
        if process.returncode or not first or not verified:
            raise RuntimeError(f"esptool exits with {process.returncode}: {''.join(said)[-800:]}")
        self.fleet.ask("reset", _DEVICE.name)
        self._settle()
        return Run(whole, verified - first, _cpu() - cpu)

    def attempt(self, layout: Path) -> Run:
        """A whole attempt of ours, which must end proven."""
        seen: dict[str, float] = {}

        def listen(stage: Stage, _done: int, total: int) -> None:
            if stage is Stage.WRITING and total:
                seen.setdefault("first", time.monotonic())
            elif stage is Stage.REBOOTING:
                seen.setdefault("verified", time.monotonic())

        settings = SerialSettings(baud=BAUD)
        wish = Wish(
            str(layout), self.port, None, self._trust.root, None, None, Before.IDENTITY, Safety(), False, settings
        )
        cpu, begun = _cpu(), time.monotonic()
        result, verdict = asyncio.run(flash_one(wish, Console(file=io.StringIO()), listen))
        whole = time.monotonic() - begun
        if verdict is None or verdict.reason != "Proven":
            raise RuntimeError(f"the attempt ended {verdict.reason if verdict else result.reason}: {result.message}")
        self._running = 1 - self._running
        return Run(whole, seen["verified"] - seen["first"], _cpu() - cpu)

    def _settle(self) -> None:
        """Wait until the application runs: its start is no part of what is compared."""
        until = time.monotonic() + _READY_SECONDS
        while self.fleet.counters(_DEVICE.name)["mode"] != "Running":
            if time.monotonic() > until:
                raise RuntimeError("the device does not run after a reset")
            time.sleep(0.02)


def _cpu() -> float:
    """CPU seconds of this process and of its ended children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def serial(report: Report, root: Path) -> None:
    """Whole attempts against the plain tool, in interleaved pairs, each pair with a release of its own."""
    pairs: list[tuple[Run, Run]] = []
    image_bytes = SMOKE_BYTES if report.smoke else FULL_BYTES
    bench = Bench(root, image_bytes)
    with bench.fleet:
        asyncio.run(bench.enroll())
        for number in range(1 if report.smoke else 3):
            image, layout = bench.image(f"1.{number}.0"), bench.release(number)
            if number % 2:
                ours = bench.attempt(layout)
                plain = bench.plain(image)
            else:
                plain = bench.plain(image)
                ours = bench.attempt(layout)
            report.say(f"  pair {number + 1}: plain {plain.whole:.2f} s, whole attempt {ours.whole:.2f} s")
            pairs.append((ours, plain))
    report.figure("serial.image_bytes", image_bytes)
    report.figure("serial.baud", BAUD)
    report.figure("serial.pairs", len(pairs))
    for name, runs in (("attempt", [a for a, _ in pairs]), ("esptool", [b for _, b in pairs])):
        report.figure(f"serial.{name}.write_seconds", statistics.median(run.write for run in runs))
        report.figure(f"serial.{name}.whole_seconds", statistics.median(run.whole for run in runs))
        report.figure(f"serial.{name}.cpu_seconds", statistics.median(run.cpu for run in runs))
    report.bar("serial write to esptool", median_ratio((a.write, b.write) for a, b in pairs), "<=", 1.05)
    report.bar("serial attempt to esptool", median_ratio((a.whole, b.whole) for a, b in pairs), "<=", 1.3)
