# SPDX-License-Identifier: Apache-2.0
"""One artifact for eight chips, 200 MB in all, between a registry and a layout directory: `firmware-pipeline cp` beside
the plain tools, crane and (where Debian offers it) oras, by turns.

All three move the same manifests and blobs. Ours checks every digest, size, config and signature list on the way, and
hashes what it reads; a run of ours counts only if the digest it prints is the artifact's.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.common import Report, median_ratio
from firmware_pipeline import api
from firmware_pipeline.esp.builder import build_app, build_bootloader
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.otadata import blank_otadata
from firmware_pipeline.esp.partitions import Partition, build_table, check
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.plan import BuildPlan
from flashjob.sandbox import programs
from flashjob.sandbox.registry import Registry
from flashjob.sandbox.toolchain import build
from tests.interop import tools
from tests.interop.tools import Tool

Direction = Literal["pull", "push"]
CHIPS: Final = ("esp32", "esp32s2", "esp32s3", "esp32c3", "esp32c5", "esp32c6", "esp32h2", "esp32p4")
MIB: Final = 1 << 20
STORAGE_BYTES: Final = 24 * MIB
"""Of each chip's file system; with a small application 200 MB in all."""
ROUNDS, SMOKE_ROUNDS = 9, 3
LIMITS: Final[dict[Direction, float]] = {"pull": 1.0, "push": 1.2}
MAX_MEMORY_MIB: Final = 16.0
_LAUNCHER: Final = """
import json, os, sys, time
started = time.monotonic()
quiet = os.open(os.devnull, os.O_RDWR)
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, quiet, 0)])
_, status, used = os.wait4(pid, 0)
wall = time.monotonic() - started
print(json.dumps([os.waitstatus_to_exitcode(status), wall, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""Starts one program and measures it. Small itself: a program's peak memory begins with that of what started it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One process: seconds on the wall and of the CPU, peak resident bytes, standard output."""

    wall: float
    cpu: float
    memory: int
    output: str


def launch(*command: str) -> Run:
    """Run a program to its end.

    Raises:
        RuntimeError: when it fails.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command], capture_output=True, text=True, check=True
    )
    *output, last = done.stdout.strip().splitlines()
    code, wall, cpu, kibibytes = json.loads(last)
    if code != 0:
        raise RuntimeError(f"{Path(command[0]).name} ended with {code}: {done.stderr[-500:]}")
    return Run(wall, cpu, kibibytes * 1024, "\n".join(output))


@dataclass(frozen=True, slots=True)
class Place:
    """A registry that holds `reference`, the same artifact in `layout`, and room for copies."""

    root: Path
    host: str
    digest: str
    ours: str

    @property
    def layout(self) -> Path:
        return self.root / "layout"

    @property
    def reference(self) -> str:
        return f"{self.host}/bench/source:1"


@contextmanager
def place(root: Path) -> Iterator[Place]:
    """Make the artifact and a registry that has it."""
    program = shutil.which("firmware-pipeline", path=str(Path(sys.executable).parent))
    if program is None:
        raise RuntimeError("firmware-pipeline is not installed beside this Python")
    plans = [_plan(root, chip) for chip in CHIPS]
    pushed = api.push(plans, f"oci:{root / 'layout'}:1", signer=None, release=None)
    with Registry.start(root / "registry", binary=build(programs.REGISTRY, os.environ)) as registry:
        made = Place(root, registry.host, pushed.index_digest, program)
        launch(program, "cp", "--quiet", "--plain-http", f"oci:{made.layout}:1", made.reference)
        yield made


def _plan(root: Path, chip: str) -> BuildPlan:
    rows = [
        Partition("nvs", 1, 0x02, 0x9000, 0x4000),
        Partition("otadata", 1, 0x00, 0xD000, 0x2000),
        Partition("ota_0", 0, 0x10, 0x20000, MIB),
        Partition("ota_1", 0, 0x11, 0x20000 + MIB, MIB),
        Partition("storage", 1, 0x82, 0x20000 + 2 * MIB, STORAGE_BYTES),
    ]
    table = 0x8000 if by_target(chip).bootloader_offset < 0x8000 else 0x10000
    files = {
        by_target(chip).bootloader_offset: build_bootloader(chip, flash_size="32MB"),
        table: build_table(check(rows, table_offset=table, flash_size=32 * MIB)),
        0xD000: blank_otadata(),
        0x20000: build_app(chip, "bench", "1.0.0", payload_size=MIB // 2, flash_size="32MB"),
        0x20000 + 2 * MIB: secrets.token_bytes(STORAGE_BYTES),
    }
    folder = root / chip
    folder.mkdir()
    for offset, data in files.items():
        (folder / f"{offset:x}.bin").write_bytes(data)
    plan = load_files([f"0x{offset:x}={folder / f'{offset:x}.bin'}" for offset in files], chip=chip)
    shutil.rmtree(folder)
    return plan


def anchors(report: Report) -> list[Tool]:
    """The plain tools that can be had here.

    Raises:
        RuntimeError: when there is none.
    """
    found = []
    for tool in (tools.crane(os.environ), tools.debian("oras 1.3", os.environ)):
        if isinstance(tool, Tool):
            found.append(tool)
        else:
            report.say(f"  {tool.name} is missing: {tool.why}")
    if not found:
        raise RuntimeError("there is nothing to compare with")
    return found


def command(tool: Tool | None, direction: Direction, there: Place) -> tuple[str, ...]:
    """What moves the artifact once: into a repository, or a directory, that is new."""
    name = secrets.token_hex(6)
    target, folder = f"{there.host}/bench/{name}:1", str(there.root / f"pulled-{name}")
    if tool is None:
        route = (f"oci:{there.layout}:1", target) if direction == "push" else (there.reference, f"oci:{folder}:1")
        return there.ours, "cp", "--quiet", "--plain-http", *route
    if tool.name == "crane":
        if direction == "push":
            return *tool.command, "push", "--insecure", "--index", str(there.layout), target
        return *tool.command, "pull", "--insecure", "--format=oci", there.reference, folder
    if direction == "push":
        return *tool.command, "cp", "-r", "--to-plain-http", "--from-oci-layout", f"{there.layout}:1", target
    return *tool.command, "cp", "-r", "--from-plain-http", "--to-oci-layout", there.reference, f"{folder}:1"


def measure(direction: Direction) -> Callable[[Report], None]:
    """The benchmark of one direction."""

    def run(report: Report) -> None:
        with tempfile.TemporaryDirectory(prefix="flashjob-bench-") as folder, place(Path(folder)) as there:
            _compare(report, direction, there, anchors(report))

    return run


def _compare(report: Report, direction: Direction, there: Place, others: list[Tool]) -> None:
    rounds: list[dict[str, Run]] = []
    turns: list[Tool | None] = [None, *others]
    for _ in range(SMOKE_ROUNDS if report.smoke else ROUNDS):
        runs: dict[str, Run] = {}
        turns.append(turns.pop(0))  # who comes first changes: memory that a run has warmed serves the next one
        for tool in turns:
            runs[tool.name if tool else "ours"] = launch(*command(tool, direction, there))
            _forget(there)
        if there.digest not in runs["ours"].output:
            raise RuntimeError(f"the digest became {runs['ours'].output}")
        rounds.append(runs)
    for name in rounds[0]:
        walls, cpus = ([getattr(runs[name], what) for runs in rounds] for what in ("wall", "cpu"))
        report.figure(f"{name}: wall s, cpu s (median)", [statistics.median(walls), statistics.median(cpus)])
    fastest = min((tool.name for tool in others), key=lambda name: statistics.median(r[name].wall for r in rounds))
    ratio = median_ratio((runs["ours"].wall, runs[fastest].wall) for runs in rounds)
    report.bar(f"{direction} of 200 MB / {fastest}, wall", ratio, "<=", LIMITS[direction])
    version = launch(there.ours, "--version").memory
    above = (max(runs["ours"].memory for runs in rounds) - version) / MIB
    report.figure("memory of --version, MiB", version / MIB)
    report.bar("peak memory above --version, MiB", above, "<=", MAX_MEMORY_MIB)


def _forget(there: Place) -> None:
    """Remove what a pull left, and from the registry what a push did: disks are not to fill up."""
    for folder in there.root.glob("pulled-*"):
        shutil.rmtree(folder)
