# SPDX-License-Identifier: Apache-2.0
"""The rules of sandbox/toolchain.py, with a Go module of three lines and the real compiler."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import subprocess
import threading
from pathlib import Path

import pytest

from flashjob.errors import FlashJobError
from flashjob.sandbox import programs
from flashjob.sandbox.process import Lifeline
from flashjob.sandbox.toolchain import (
    BuildProgress,
    Go,
    GoProgram,
    available_memory_bytes,
    build,
    build_key,
    cache_directory,
    ensure_go,
    find_go,
)

needs_go = pytest.mark.skipif(find_go(os.environ) is None, reason="Go 1.26 or newer is not on PATH")
SAYS = 'package main\n\nfunc main() {{ println("{}") }}\n'


@pytest.fixture
def program(tmp_path: Path) -> GoProgram:
    source = tmp_path / "source"
    source.mkdir()
    (source / "go.mod").write_text("module example.test/tiny\n\ngo 1.26\n")
    (source / "go.sum").write_text("")
    (source / "main.go").write_text(SAYS.format("one"))
    return GoProgram("tiny", "compiling something tiny", source)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def output(path: Path) -> str:
    return subprocess.run([path], capture_output=True, text=True, check=True).stderr.strip()


@needs_go
def test_built_once_cached_and_rebuilt_when_stale(program: GoProgram, environ: dict[str, str]) -> None:
    (cache_directory(environ) / "build-tiny-left").mkdir()  # scratch of a build that was killed
    seen: list[BuildProgress] = []
    first = build(program, environ, seen.append)
    assert output(first) == "one"
    assert any(step.total and step.done == step.total for step in seen)
    assert "cached for next time" in seen[-1].what

    seen.clear()
    assert build(program, environ, seen.append) == first
    assert seen == []  # rule 2: nothing changed, nothing is built

    (program.source / "main.go").write_text(SAYS.format("two"))
    second = build(program, environ, seen.append)
    assert second != first
    assert output(second) == "two"
    left = {path.name for path in second.parents[1].iterdir()}
    assert left == {first.parent.name, second.parent.name, "tiny.lock"}  # rule 5: no scratch is left, of nobody


@needs_go
def test_two_builders_build_once(program: GoProgram, environ: dict[str, str]) -> None:
    steps: list[BuildProgress] = []
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(build(program, environ, steps.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(set(paths)) == 1
    assert len(paths) == 2
    assert sum("cached for next time" in step.what for step in steps) == 1


@needs_go
def test_a_build_that_fails_says_what_the_compiler_said(program: GoProgram, environ: dict[str, str]) -> None:
    (program.source / "main.go").write_text("package main\n\nfunc main() { undefinedName() }\n")
    with pytest.raises(FlashJobError) as caught:
        build(program, environ)
    assert caught.value.reason == "BuildFailed"
    assert "undefinedName" in caught.value.message
    assert [path.name for path in cache_directory(environ).iterdir()] == ["tiny.lock"]


@needs_go
def test_a_build_that_nobody_wants_any_more_ends(program: GoProgram, environ: dict[str, str]) -> None:
    with Lifeline() as lifeline, pytest.raises(FlashJobError) as caught:
        build(program, environ, lambda step: lifeline.cut() if step.total else None, lifeline)
    assert caught.value.reason == "BuildStopped"
    assert [path.name for path in cache_directory(environ).iterdir()] == ["tiny.lock"]


@needs_go
def test_waiting_for_another_builder_can_be_given_up(program: GoProgram, environ: dict[str, str]) -> None:
    with (cache_directory(environ) / "tiny.lock").open("w") as held, Lifeline() as lifeline:
        fcntl.flock(held, fcntl.LOCK_EX)
        lifeline.cut()
        with pytest.raises(FlashJobError) as caught:
            build(program, environ, lifeline=lifeline)
    assert caught.value.reason == "BuildStopped"


@needs_go
@pytest.mark.parametrize(("disk", "memory", "reason"), [(1 << 60, 0, "DiskTooSmall"), (0, 1 << 60, "MemoryTooSmall")])
def test_room_is_checked_first(
    program: GoProgram, environ: dict[str, str], disk: int, memory: int, reason: str
) -> None:
    with pytest.raises(FlashJobError) as caught:
        build(dataclasses.replace(program, disk_bytes=disk, memory_bytes=memory), environ)
    assert caught.value.reason == reason
    assert caught.value.next_step


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlashJobError) as caught:
        cache_directory({"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert caught.value.reason == "CacheNotWritable"
    assert "XDG_CACHE_HOME" in caught.value.next_step


def test_home_is_enough(tmp_path: Path) -> None:
    assert cache_directory({"HOME": str(tmp_path)}) == tmp_path / ".cache" / "flashjob"


def fake_go(directory: Path, version: str) -> None:
    directory.mkdir()
    (directory / "go").write_text(f"#!/bin/sh\necho go version go{version} linux/amd64\n")
    (directory / "go").chmod(0o755)


@pytest.mark.parametrize(
    ("version", "found"), [("1.26.8", True), ("1.27rc1", True), ("1.25.9", False), ("1.9", False), ("2.0.0", True)]
)
def test_only_a_new_enough_go_is_used(tmp_path: Path, version: str, found: bool) -> None:
    fake_go(tmp_path / "bin", version)
    go = find_go({"PATH": f"{tmp_path / 'bin'}:/bin"})
    if found:
        assert go == Go(tmp_path / "bin" / "go", version)
    else:
        assert go is None or go.path != tmp_path / "bin" / "go"


def test_key_depends_on_every_input(program: GoProgram) -> None:
    keys = {build_key(program, "1.26.8"), build_key(program, "1.26.9")}
    keys.add(build_key(dataclasses.replace(program, ldflags="-s"), "1.26.8"))
    for name in ("go.mod", "go.sum", "main.go"):
        path = program.source / name
        path.write_text(path.read_text() + "\n")
        keys.add(build_key(program, "1.26.8"))
    assert len(keys) == 6


def test_memory_is_read_from_meminfo() -> None:
    assert available_memory_bytes("MemTotal: 9 kB\nMemAvailable:    2048 kB\n") == 2 << 20
    assert available_memory_bytes("MemTotal: 9 kB\n") is None


@needs_go
def test_ensure_go_takes_what_is_there() -> None:
    assert ensure_go(os.environ) == find_go(os.environ)


@pytest.mark.parametrize("program_", [programs.CONTROL_PLANE, programs.REGISTRY])
def test_shipped_sources_are_complete(program_: GoProgram) -> None:
    assert len(build_key(program_, "1.26.8")) == 16
    modules = (program_.source / "go.sum").read_text()
    required = [line.split()[0] for line in (program_.source / "go.mod").read_text().splitlines() if " v" in line][1:]
    assert required
    for name in required:
        if name.startswith(("k8s.io/kubernetes", "github.com/distribution/")):
            assert f"{name} v" in modules
