# SPDX-License-Identifier: Apache-2.0
"""The real tools that others use: found in the cache, else fetched from Debian or compiled from the Go module proxy.

Rules:
    1. Nothing of the system changes: packages of other Debian suites are unpacked below the cache and run from there.
    2. The archive's address and signing key are the system's own; signatures are checked by apt as always.
    3. What is cached is used as it is; delete the directory to get newer versions.
    4. A tool that cannot be had is `Missing` with the reason, never left out in silence.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashjob.errors import FlashJobError
from flashjob.sandbox import programs
from flashjob.sandbox.toolchain import GoProgram, build, cache_directory

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CRANE: Final = GoProgram("crane", "compiling crane", Path(__file__).parent / "crane_src")
SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Package:
    """A program in a Debian package.

    Attributes:
        name: of the tool.
        suite: of the archive.
        package, program: which package, and its file in /usr/bin.
        closure: it needs libraries of its own suite.
    """

    name: str
    suite: str
    package: str
    program: str
    closure: bool = False


PACKAGES: Final = (
    Package("oras 1.2", "trixie", "oras", "oras"),
    Package("oras 1.3", "forky", "oras", "oras"),
    Package("skopeo 1.9", "bookworm", "skopeo", "skopeo", closure=True),
    Package("skopeo 1.22", "forky", "skopeo", "skopeo", closure=True),
    Package("cosign 2", "trixie", "cosign", "cosign"),
    Package("cosign 3", "forky", "cosign", "cosign"),
    Package("docker-registry 2.8", "forky", "docker-registry", "docker-registry"),
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that can be run: `command` comes before its arguments."""

    name: str
    version: str
    command: tuple[str, ...]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Its standard output.

        Raises:
            ToolFailed: with the end of what it said.
        """
        try:
            done = subprocess.run(
                [*self.command, *arguments],
                env={**os.environ, **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolFailed(f"{self.name} {arguments[0]}: no end after {SECONDS} s") from error
        if done.returncode != 0:
            words = " ".join((done.stderr.strip() or done.stdout.strip()).split())
            raise ToolFailed(f"{self.name} {' '.join(arguments[:2])}: exit code {done.returncode}: {words[-300:]}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Missing:
    """A tool that cannot be had here."""

    name: str
    why: str


class ToolFailed(Exception):
    """A tool ended with an error."""


def crane(environ: Mapping[str, str]) -> Tool | Missing:
    """Crane, compiled with the sandbox's Go toolchain."""
    try:
        path = build(CRANE, environ)
    except FlashJobError as error:
        return Missing("crane", error.message)
    wanted = re.search(r"go-containerregistry v(\S+)", (CRANE.source / "go.mod").read_text(encoding="utf-8"))
    return Tool("crane", wanted[1] if wanted else "unknown", (str(path),))


def registry_3(environ: Mapping[str, str]) -> Tool | Missing:
    """The distribution registry of the sandbox."""
    try:
        path = build(programs.REGISTRY, environ)
    except FlashJobError as error:
        return Missing("distribution 3", error.message)
    wanted = re.search(r"distribution/v3 v(\S+)", (programs.REGISTRY.source / "go.mod").read_text(encoding="utf-8"))
    return Tool("distribution 3", wanted[1] if wanted else "unknown", (str(path),))


def debian(name: str, environ: Mapping[str, str]) -> Tool | Missing:
    """One of `PACKAGES`."""
    package = next(package for package in PACKAGES if package.name == name)
    cache = cache_directory(environ) / "interop"
    root = cache / f"{package.package}-{package.suite}"
    if not (root / "version").is_file():
        try:
            _unpack(package, cache, root, environ)
        except ToolFailed as error:
            return Missing(name, str(error))
    version = (root / "version").read_text(encoding="ascii").strip()
    program = str(root / "usr" / "bin" / package.program)
    if not package.closure:
        return Tool(name, version, (program,))
    loader = next(iter(sorted(root.glob("**/ld-linux-*.so.*"))), None)
    if loader is None:
        return Missing(name, "its suite's C library holds no loader for this machine")
    folders = sorted({str(path.parent) for path in root.glob("**/*.so*") if "/engines" not in str(path)})
    return Tool(name, version, (str(loader), "--library-path", ":".join(folders), program))


def _unpack(package: Package, cache: Path, root: Path, environ: Mapping[str, str]) -> None:
    work = cache / f"apt-{package.suite}"
    archives = work / "cache" / "archives"
    for folder in (archives / "partial", work / "state" / "lists" / "partial", root):
        folder.mkdir(parents=True, exist_ok=True)
    (work / "state" / "status").touch()
    env = {**environ, "APT_CONFIG": str(_configure(work, package.suite, environ)), "LC_ALL": "C"}
    if not any((work / "state" / "lists").glob("*Packages*")):
        _run(["apt-get", "-q", "update"], env, work)
    if package.closure:
        command = ["apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "install", package.package]
        _run(command, env, work)
    else:
        _run(["apt-get", "-q", "download", package.package], env, archives)
    version = ""
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(root)], env, work)
        if archive.name.startswith(f"{package.package}_"):
            version = archive.name.split("_")[1]
        archive.unlink()
    if not (root / "usr" / "bin" / package.program).is_file():
        raise ToolFailed(f"the package {package.package} of {package.suite} holds no program {package.program}")
    (root / "version").write_text(version.replace("%3a", ":") + "\n", encoding="ascii")


def _configure(work: Path, suite: str, environ: Mapping[str, str]) -> Path:
    """An apt configuration whose every path lies below `work` (rules 1 and 2)."""
    asked = _run(["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"], environ, work)
    archive = next((line.partition("|")[2] for line in asked.splitlines() if line.startswith("Debian|")), None)
    if archive is None or not KEYRING.is_file():
        raise ToolFailed("this system has no Debian archive configured")
    sources, path = work / "sources.list", work / "apt.conf"
    sources.write_text(f"deb [signed-by={KEYRING}] {archive} {suite} main\n", encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": work / "state",
        "Dir::State::status": work / "state" / "status",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    path.write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()), encoding="utf-8")
    return path


def _run(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    try:
        done = subprocess.run(
            command, env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailed(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise ToolFailed(f"{' '.join(command[:4])}: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout
