# SPDX-License-Identifier: Apache-2.0
"""Real esptool, real pseudo-terminals, virtual chips: from detection to the verdict."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestation.policy import RootOfTrust
from flashjob.errors import FlashJobError
from flashjob.flasher.esptool import Esptool
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual.adversaries import NeverComesBack, RunsOldImage, StaleBootId
from flashjob.virtual.device import Mode
from flashjob.virtual.faults import BitFlips, CablePulled, ChipHangs, Fault, FlashFails, SilentPort
from flashjob.wire.esptool_lines import Region
from flashjob.wire.gateway import Outcome, Stage
from flashjob.wire.pod import Before, Timeouts
from flashjob.wire.serial import SerialSettings

from .bench import QUICK, Bench, BenchJudge, assignment, new_app, open_release, push, runs, signed

CHIPS = ("esp32", "esp32s2", "esp32s3", "esp32c3")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def esptool_cli(*arguments: str) -> tuple[int, str]:
    """Run the real command line tool."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "esptool", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


# --- the command line tool against every chip ----------------------------------------------------------------------


@pytest.mark.parametrize("stub", [True, False], ids=["stub", "rom"])
@pytest.mark.parametrize("chip", CHIPS)
async def test_esptool_detects_writes_verifies_and_reads(bench: Bench, tmp_path: Path, chip: str, stub: bool) -> None:
    device = await bench.device("board", chip, app=b"")
    assert device.port is not None
    image = new_app(chip, 64 * 1024)
    file, back = tmp_path / "app.bin", tmp_path / "back.bin"
    file.write_bytes(image)
    common = ["--port", device.port.place, *([] if stub else ["--no-stub"])]

    code, said = await esptool_cli(*common, "write-flash", "0x20000", str(file))
    assert code == 0, said
    mac = ":".join(f"{b:02x}" for b in device.identity.hardware.mac)
    assert mac in said
    assert device.identity.hardware.chip.display in said
    revision = device.identity.hardware.revision
    assert f"revision v{revision // 100}.{revision % 100}" in said
    assert device.flash.read(0x20000, len(image)) == image

    code, said = await esptool_cli(*common, "verify-flash", "0x20000", str(file))
    assert code == 0, said
    assert "Verification successful" in said
    code, said = await esptool_cli(*common, "read-flash", "0x20000", "0x3000", str(back))
    assert code == 0, said
    assert back.read_bytes() == image[:0x3000]


async def test_esptool_sees_flash_that_is_not_what_was_written(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device("board", "esp32c3", app=b"")
    assert device.port is not None
    file = tmp_path / "app.bin"
    file.write_bytes(new_app("esp32c3", 64 * 1024))
    code, said = await esptool_cli("--port", device.port.place, "verify-flash", "0x20000", str(file))
    assert code != 0
    assert "differ" in said.lower() or "fail" in said.lower()


# --- our own esptool program ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", CHIPS)
async def test_worker_probes_every_chip(bench: Bench, chip: str) -> None:
    device = await bench.device("board", chip)
    assert device.port is not None
    content = device.flash.snapshot()
    async with Esptool(device.port.place) as tool:
        found, data = await tool.probe(Region(offset=0x8000, size=0xC00))
        assert device.mode is Mode.LOADER
        await tool.reset()
    hardware = device.identity.hardware
    assert (found.chip, found.revision, found.flash_size) == (chip, hardware.revision, hardware.flash_size)
    assert found.mac == ":".join(f"{b:02x}" for b in hardware.mac)
    assert data[0x8000] == device.flash.read(0x8000, 0xC00)
    assert device.flash.snapshot() == content


async def test_worker_writes_a_real_size_image_and_reports_progress(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device("board", "esp32s3")
    assert device.port is not None
    image = new_app("esp32s3", 1600 * 1024)
    file = tmp_path / "app.bin"
    file.write_bytes(image)
    seen: list[tuple[int, int]] = []
    async with Esptool(device.port.place, SerialSettings(baud=921_600)) as tool:
        await tool.write([Region(offset=0x20000, file=str(file))], [], lambda done, total: seen.append((done, total)))
        assert tool.bytes_written == len(image)
        await tool.reset()
    assert device.flash.read(0x20000, len(image)) == image
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0
    assert len(seen) > 20


async def test_worker_ends_at_once_when_its_starter_is_gone(bench: Bench, tmp_path: Path) -> None:
    """Rule 5 of the worker: end of input in the middle of a job is the end, and the port is free again."""
    device = await bench.device("board", "esp32s3", faults=[ChipHangs(percent=10)])
    assert device.port is not None
    file = tmp_path / "app.bin"
    file.write_bytes(new_app("esp32s3"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flashjob.flasher.esptool_worker", stdin=-1, stdout=-1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    job = (
        f'{{"verb":"write","port":"{device.port.place}","chip":"","baud":115200,"stub":true,"reset":"auto","connectAttempts":3,'
        f'"erase":[],"regions":[{{"offset":131072,"file":"{file}","size":0}}]}}\n'
    )
    process.stdin.write(job.encode())
    while b'"progress"' not in await process.stdout.readline():
        assert process.returncode is None
    process.stdin.close()
    async with asyncio.timeout(2):
        assert await process.wait() == 1
    device.faults.clear()
    device.reset()
    async with Esptool(device.port.place) as tool:
        assert (await tool.probe())[0].chip == "esp32s3"


async def test_two_programs_never_share_a_port(bench: Bench) -> None:
    device = await bench.device("board", "esp32s3")
    assert device.port is not None
    async with Esptool(device.port.place) as first:
        await first.probe()
        async with Esptool(device.port.place) as second:
            with pytest.raises(FlashJobError) as refused:
                await second.probe()
        assert refused.value.reason == "PortBusy"
        code, said = await esptool_cli("--port", device.port.place, "flash-id")
        assert code != 0
        assert "lock" in said.lower() or "busy" in said.lower()
        await first.read(Region(offset=0, size=4096))  # the first one was not disturbed


async def test_missing_port_and_wrong_chip_have_their_own_reasons(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device("board", "esp32c3")
    assert device.port is not None
    async with Esptool(str(tmp_path / "nothing")) as tool:
        with pytest.raises(FlashJobError) as refused:
            await tool.probe()
    assert refused.value.reason == "PortNotFound"
    async with Esptool(device.port.place, chip="esp32s3") as tool:
        with pytest.raises(FlashJobError) as refused:
            await tool.probe()
    assert refused.value.reason == "WrongChip"


# --- whole attempts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", CHIPS)
async def test_an_update_is_proven(bench: Bench, tmp_path: Path, chip: str) -> None:
    device = await bench.device("porch-1", chip)
    release = push(tmp_path, new_app(chip), chip)
    result, judge = await bench.flash(device, release)
    assert result.ok, result
    assert judge.outcome is (Outcome.BELOW_POLICY if chip == "esp32" else Outcome.PROVEN)
    assert device.application is not None
    assert device.application.boot.version == "2.0.0"
    assert device.application.boot.boot_id.hex() == judge.case.permits[0].grant_id
    regions = device.flash.regions
    assert (regions["ota_0"].programmed, regions["ota_1"].installs) == (0, 1)
    assert regions["nvs"].programmed == regions["storage"].programmed == 0
    assert result.bytes_written == len(release.image) + 4096
    assert result.hardware is not None
    assert result.hardware.mac == ":".join(f"{b:02x}" for b in device.identity.hardware.mac)
    assert set(result.seconds) == {"Preflight", "Writing", "Rebooting", "Attesting", "Confirming"}
    assert judge.results == [result]


async def test_a_device_that_runs_the_target_is_not_even_reset(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(app=new_app("esp32s3"))
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, judge = await bench.flash(device, release)
    assert (result.ok, result.reason, result.bytes_written) == (True, "AlreadyRunning", 0)
    assert judge.outcome is Outcome.ALREADY_RUNNING
    assert (device.boots, device.flash.bytes_programmed) == (1, 32)  # the first boot's own OTA record


async def test_another_chip_of_the_same_kind_is_refused_untouched(bench: Bench, tmp_path: Path) -> None:
    meant = await bench.device("meant")
    other = await bench.device("other")
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    written = other.flash.bytes_programmed
    assert other.port is not None
    result, _ = await bench.flash(meant, release, port=other.port.place)
    assert (result.ok, result.reason, result.bytes_written) == (False, "WrongDevice", 0)
    blind = assignment(meant, release.target, before=Before.NONE)
    result, _ = await bench.flash(meant, release, task=blind, port=other.port.place)
    assert (result.reason, result.bytes_written) == ("WrongDevice", 0)
    assert "eFuse MAC" in result.message
    assert other.flash.bytes_programmed == written
    await runs(other, "1.0.0")


async def test_image_of_another_chip_is_refused_untouched(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device()
    release = push(tmp_path, new_app("esp32c3"), "esp32c3")
    written = device.flash.bytes_programmed
    result, _ = await bench.flash(device, release)
    assert (result.reason, result.bytes_written) == ("WrongChip", 0)
    assert device.flash.bytes_programmed == written
    await runs(device, "1.0.0")


async def test_image_larger_than_its_slot_is_refused_untouched(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device()
    release = push(tmp_path, new_app("esp32s3", 0x1D0000), "esp32s3")
    result, _ = await bench.flash(device, release)
    assert (result.reason, result.bytes_written) == ("ImageTooLarge", 0)
    await runs(device, "1.0.0")


@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32c3"])
async def test_a_locked_loader_is_refused_untouched(bench: Bench, tmp_path: Path, chip: str) -> None:
    device = await bench.device("locked", chip, locked_loader=True)
    release = push(tmp_path, new_app(chip), chip)
    result, _ = await bench.flash(device, release)
    assert (result.ok, result.reason, result.bytes_written) == (False, "SecureBootMismatch", 0), result
    assert "secure download" in result.message
    await runs(device, "1.0.0")


async def test_cable_pulled_at_30_percent_then_right(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(faults=[CablePulled(percent=30, replug_seconds=0.1)])
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, judge = await bench.flash(device, release)
    assert (result.ok, result.reason, result.stage.value) == (False, "PortVanished", "Writing")
    assert 0 < result.bytes_written < len(release.image)
    assert not judge.case.judged
    await runs(device, "1.0.0")
    judge.next_attempt()
    again = assignment(device, release.target, attempt=2)
    result, judge = await bench.flash(device, release, task=again, judge=judge)
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
    assert result.bytes_written < len(release.image), "what the first attempt wrote is not written again"
    assert device.flash.regions["ota_1"].installs == 1


@pytest.mark.parametrize("last", [Stage.REBOOTING, Stage.ATTESTING])
async def test_second_attempt_finds_the_first_ones_installation(bench: Bench, tmp_path: Path, last: Stage) -> None:
    """The pod died after the write, before or after the reset: nothing is written again."""
    device = await bench.device()
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target)
    judge = BenchJudge(device, task)
    firmware = fetch(open_release(release), release.target, bench.work)
    assert device.port is not None
    reached = asyncio.Event()
    transport = SerialTransport(device.port.place, bench.work)

    def listen(stage: Stage, _done: int, _total: int) -> None:
        if stage is last:
            reached.set()

    attempt = asyncio.create_task(Attempt(task, firmware, transport, judge, listen).run())
    await reached.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert judge.results[-1].reason == "Stopped"
    judge.next_attempt()
    quick = QUICK.model_copy(update={"boot_seconds": 2})
    again = assignment(device, release.target, attempt=2, timeouts=quick)
    result, judge = await bench.flash(device, release, task=again, judge=judge)
    assert (result.ok, result.bytes_written) == (True, 0), result
    assert judge.outcome is Outcome.PROVEN
    assert device.flash.regions["ota_1"].installs == 1


async def test_silent_port(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(faults=[SilentPort()])
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target, timeouts=Timeouts(attest_seconds=1))
    result, _ = await bench.flash(device, release, task=task)
    assert (result.reason, result.bytes_written) == ("PortSilent", 0)
    task = assignment(device, release.target, before=Before.NONE)
    result, _ = await bench.flash(device, release, task=task)
    assert (result.reason, result.bytes_written) == ("PortSilent", 0)
    assert device.flash.bytes_programmed <= 32


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(FlashFails(), "WriteFailed"), (BitFlips(), "VerifyFailed"), (ChipHangs(times=99), "TransportLost")],
)
async def test_faults_in_mid_write(bench: Bench, tmp_path: Path, fault: Fault, reason: str) -> None:
    device = await bench.device(faults=[fault])
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, _ = await bench.flash(device, release)
    assert (result.ok, result.reason) == (False, reason), result
    device.reset()
    await runs(device, "1.0.0")


async def test_write_deadline_kills_the_writer(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(faults=[ChipHangs(percent=50)])
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target, timeouts=QUICK.model_copy(update={"write_seconds": 1}))
    result, _ = await bench.flash(device, release, task=task)
    assert result.reason == "WriteTimeout"
    assert device.port is not None
    async with asyncio.timeout(3):  # the port is free again
        async with Esptool(device.port.place) as tool:
            await tool.probe()


async def test_a_liar_that_runs_the_old_image_is_caught(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(behaviour=RunsOldImage())
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, judge = await bench.flash(device, release)
    assert (result.ok, result.reason) == (False, "MeasurementMismatch")
    assert judge.outcome is Outcome.REJECTED


async def test_a_liar_with_an_old_boot_id_is_caught(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(behaviour=StaleBootId())
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, judge = await bench.flash(device, release)
    assert (result.ok, result.reason) == (False, "BootIdMismatch")
    assert judge.outcome is Outcome.REJECTED


async def test_a_device_that_never_comes_back(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(behaviour=NeverComesBack())
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target, timeouts=QUICK.model_copy(update={"boot_seconds": 1}))
    result, judge = await bench.flash(device, release, task=task)
    assert (result.ok, result.reason, result.stage.value) == (False, "SilentAfterWrite", "Rebooting")
    assert judge.outcome is None


async def test_blank_board_takes_its_first_image_without_evidence(bench: Bench, tmp_path: Path) -> None:
    """A board whose slots are empty: bootloader and table only; `before: None`."""
    device = await bench.device(app=b"")
    assert device.boot_failure
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target, before=Before.NONE)
    result, judge = await bench.flash(device, release, task=task)
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN


async def test_lower_root_of_trust_is_accepted_only_knowingly(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device("porch-1", "esp32")
    release = push(tmp_path, new_app("esp32"), "esp32")
    task = assignment(device, release.target)
    judge = BenchJudge(device, task, minimum=RootOfTrust.SELF_REPORTED)
    result, judge = await bench.flash(device, release, task=task, judge=judge)
    assert result.ok
    assert judge.outcome is Outcome.PROVEN


async def test_real_firmware(bench: Bench, tmp_path: Path, firmware_dir: Path) -> None:
    """MicroPython's own images, which have neither a name nor a version."""
    old = signed((firmware_dir / "micropython-esp32c3-2023-04-26-app.bin").read_bytes())
    new = signed((firmware_dir / "micropython-esp32c3-2023-06-10-app.bin").read_bytes())
    device = await bench.device("porch-1", "esp32c3", app=old)
    assert device.port is not None
    file = tmp_path / "app.bin"
    file.write_bytes(new)
    async with Esptool(device.port.place) as tool:
        await tool.write([Region(offset=0x20000, file=str(file))], [], lambda _done, _total: None)
        await tool.reset()
    await runs(device, "")
    assert device.application is not None
    assert device.flash.read(0x20000, len(new)) == new


def test_the_link_is_what_hosts_open(tmp_path: Path) -> None:
    """A guard for the tests above: pseudo-terminals are available."""
    master, slave = os.openpty()
    assert os.ttyname(slave).startswith("/dev/pts/")
    os.close(master)
    os.close(slave)
