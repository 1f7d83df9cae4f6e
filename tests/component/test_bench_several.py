# SPDX-License-Identifier: Apache-2.0
"""`flashjob flash` with several places: side by side, one artifact, an end for each, the worst is the exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashjob.demo.fleet_process import FleetProcess
from flashjob.demo.materials import DemoDevice, Materials

from .test_bench_cli import Shop

SERIAL = DemoDevice("porch", "esp32c3", "serial", "SelfReported", "bench")
WEAK = DemoDevice("attic", "esp32", "serial", "SelfReported", "field")
NETWORK = DemoDevice("yard", "esp32s3", "network", "SignedBoot", "field")
OTHER = DemoDevice("shed", "esp32s3", "network", "SignedBoot", "field")
STRANGER = DemoDevice("lane", "esp32c3", "network", "SignedBoot", "field")
ALL = (SERIAL, WEAK, NETWORK, OTHER)


class Bench(Shop):
    """A shop whose devices, but one, are enrolled."""

    def place(self, device: DemoDevice) -> str:
        return self.where(device)[1]

    def command(self, layout: Path, *words: object) -> list[str]:
        return [
            sys.executable,
            "-m",
            "flashjob.cli",
            "flash",
            str(layout),
            "--trust",
            str(self.trust),
            *map(str, words),
        ]

    def several(self, layout: Path, *words: object) -> tuple[int, dict[str, dict[str, Any]]]:
        """(exit code, place -> its end)."""
        done = self.run("flash", layout, "--trust", self.trust, "--json", *words)
        said = json.loads(done.stdout)
        assert set(said) == {"devices"}, said
        return done.returncode, {end["place"]: end for end in said["devices"]}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("bench")
    materials = Materials.make(root / "materials")
    with FleetProcess(materials.fleet([*ALL, STRANGER], root), root) as fleet:
        made = Bench(root, fleet, materials)
        for device in ALL:
            assert made.enroll(device).returncode == 0
        yield made


def test_each_has_its_end_and_the_worst_is_the_exit_code(bench: Bench) -> None:
    layout = bench.push("2.0.0", 2)
    code, ends = bench.several(layout, *map(bench.place, (SERIAL, NETWORK)), "--parallel", 1)
    assert code == 0, ends
    assert {end["verdict"]["outcome"] for end in ends.values()} == {"Proven"}
    code, ends = bench.several(layout, *map(bench.place, (SERIAL, NETWORK, STRANGER)))
    assert code == 3, "nobody failed, one was refused"
    assert list(ends) == list(map(bench.place, (SERIAL, NETWORK, STRANGER))), "in the order they were named"
    assert ends[bench.place(SERIAL)]["verdict"]["outcome"] == "AlreadyRunning"
    assert ends[bench.place(STRANGER)]["error"]["reason"] == "DeviceNotEnrolled"
    bench.fleet.ask("behave", OTHER.name, behaviour="RunsOldImage")
    code, ends = bench.several(layout, *map(bench.place, (WEAK, OTHER, NETWORK)), "127.0.0.1:1")
    assert code == 1, "one was written and is not right: worse than unproven and unreachable"
    reasons = {place: (end["verdict"] or end["error"])["reason"] for place, end in ends.items()}
    assert reasons == {
        bench.place(WEAK): "RootOfTrustTooLow",
        bench.place(OTHER): "MeasurementMismatch",
        bench.place(NETWORK): "AlreadyRunning",
        "127.0.0.1:1": "DeviceUnreachable",
    }


def test_people_read_a_block_for_each_and_how_many_are_proven(bench: Bench) -> None:
    layout = bench.push("2.1.0", 3)
    places = (bench.place(SERIAL), bench.place(STRANGER), bench.place(NETWORK), bench.place(OTHER))
    bench.fleet.ask("behave", OTHER.name, behaviour="Honest")
    done = bench.run("flash", layout, "--trust", bench.trust, *places)
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert sum("for esp32s3" in line for line in lines) == 1, "what is verified for both is said once"
    assert bench.place(SERIAL) in lines
    assert lines[lines.index(bench.place(SERIAL)) + 1].startswith("Proven: ")
    assert lines[-1] == "3 of 4 devices proven"
    assert done.stderr.splitlines()[0] == bench.place(STRANGER)
    assert done.stderr.splitlines()[1].startswith("DeviceNotEnrolled: ")


def test_two_places_of_one_device_are_one_writer(bench: Bench) -> None:
    """Over the network: of two paths to one port the second may fail at the port already."""
    layout = bench.push("2.2.0", 4)
    code, ends = bench.several(layout, bench.place(NETWORK), bench.place(NETWORK).replace("127.0.0.1", "localhost"))
    assert code == 3
    assert [end["error"]["reason"] for end in ends.values() if end["error"]] == ["DeviceBusy"]
    assert sum(end["verdict"] is not None for end in ends.values()) == 1


@pytest.mark.parametrize(
    ("number", "kill", "sequence"),
    [
        pytest.param(signal.SIGINT, os.killpg, 5, id="Ctrl-C: the whole foreground group"),
        pytest.param(signal.SIGTERM, os.kill, 6, id="SIGTERM"),
        pytest.param(signal.SIGTERM, os.killpg, 7, id="SIGTERM: the whole group, as a cancelled CI job"),
    ],
)
async def test_stopped_it_tells_for_each_what_was_left_behind(
    bench: Bench, tmp_path: Path, number: signal.Signals, kill: Callable[[int, int], None], sequence: int
) -> None:
    layout = bench.push(f"2.{sequence}.0", sequence)
    bench.fleet.ask("fault", SERIAL.name, fault={"kind": "Slow", "seconds": 0.05})
    before = bench.fleet.counters(SERIAL.name)["bytesProgrammed"]
    words = (bench.place(SERIAL), bench.place(NETWORK), "127.0.0.1:1")
    process = await asyncio.create_subprocess_exec(
        *bench.command(layout, *words, "--parallel", 1, "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"HOME": str(bench.root), "TMPDIR": str(tmp_path)}, process_group=0,
    )  # fmt: skip
    async with asyncio.timeout(60):
        while bench.fleet.counters(SERIAL.name)["bytesProgrammed"] < before + 40_000:
            await asyncio.sleep(0.05)
    kill(process.pid, number)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 128 + number
    assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == [], "no folder is left behind"
    ends = {end["place"]: end for end in json.loads(out)["devices"]}
    first, second, third = (ends[place] for place in words)
    assert (first["error"]["reason"], first["result"]["stage"]) == ("Stopped", "Writing"), ends
    assert "the image is not complete" in first["error"]["message"]
    assert first["result"]["bytesWritten"] > 0
    for waiting in (second, third):
        assert (waiting["error"]["message"], waiting["result"]) == ("stopped by hand: nothing was written", None)
    for place in words:
        assert place in err.decode()
    bench.fleet.ask("clearFaults", SERIAL.name)
    code, ends = bench.several(layout, *words[:2])
    assert code == 0, "the same command goes on, though the chip still waits in its loader"
    assert {end["verdict"]["outcome"] for end in ends.values()} == {"Proven"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["127.0.0.1:1", "127.0.0.1:1"], "given twice"),
        (["127.0.0.1:1", "--host", "127.0.0.1:2"], "--port and --host"),
        (["127.0.0.1:1", "127.0.0.1:2", "--device", "01"], "one device"),
        (["127.0.0.1:1", "127.0.0.1:2", "--before", "None"], "one device"),
        (["127.0.0.1:1", "127.0.0.1:2", "--parallel", "0"], "parallel"),
        (["127.0.0.1:1", "127.0.0.1:99999"], "neither a serial port"),
        (["no place at all"], "neither a serial port"),
        (["/dev/ttyX", "--reset", "warm"], "--reset warm"),
        (["/dev/ttyX", "--baud", "1"], "--baud 1"),
    ],
)
def test_usage_is_2(bench: Bench, words: list[str], says: str) -> None:
    done = bench.run("flash", bench.root, "--trust", bench.trust, *words)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.replace("│", " ").split())


def test_enroll_keeps_how_the_line_is_driven(bench: Bench) -> None:
    assert bench.enroll(SERIAL, "--baud", 115200, "--no-stub").returncode == 0
    spec = json.loads(bench.file(SERIAL).read_text())["spec"]
    assert spec["connection"]["serial"] == {
        "match": {"UDEV_DEVNODE": bench.place(SERIAL)}, "baud": 115200, "stub": False,
    }  # fmt: skip
