# SPDX-License-Identifier: Apache-2.0
"""`firmware-pipeline` in a real shell: completion, interruption, what it prints and what it never prints."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firmware_pipeline.cli import VERBS, app
from tests.unit.firmware import builds
from tests.unit.firmware.hostile_registry import HostileRegistry

PROGRAM = str(Path(sys.executable).with_name("firmware-pipeline"))
SECRET = "h0rse-battery-staple"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A clean home, the program on the PATH, nothing of the person who runs the tests."""
    path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
    return {"HOME": str(tmp_path), "PATH": path, "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def shell(script: str, cwd: Path, environment: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, check=False
    )


def test_completion_in_bash(tmp_path: Path, environment: dict[str, str]) -> None:
    """The script that the program prints completes verbs and options when bash asks for them."""
    ask = """
    source <(firmware-pipeline --show-completion bash) && declare -F | grep -o '_firmware_pipeline_completion$'
    complete -p firmware-pipeline
    try() { COMP_WORDS=(firmware-pipeline "$@"); COMP_CWORD=$#; _firmware_pipeline_completion firmware-pipeline; }
    try pu; echo "verbs: ${COMPREPLY[*]}"
    try pull --plain; echo "options: ${COMPREPLY[*]}"
    """
    done = shell(ask, tmp_path, environment)
    assert "complete -o default -F _firmware_pipeline_completion firmware-pipeline" in done.stdout, done.stderr
    assert "verbs: push pull" in done.stdout
    assert "options: --plain-http" in done.stdout
    assert done.stderr == ""


def test_help_and_completion_import_no_verb(tmp_path: Path, environment: dict[str, str]) -> None:
    script = """
import sys
from firmware_pipeline.cli import app
try: app(["--help"])
except SystemExit: pass
heavy = {"pydantic", "cryptography", "requests", "rich", "oras", "yaml", "firmware_pipeline.api"} & sys.modules.keys()
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(re.search(rf"^  {verb} ", done.stdout, re.MULTILINE) for verb in VERBS)


HEAVY = {
    "cryptography", "requests", "oras", "rich", "http.server", "cbor2", "attestation.cose",
    "firmware_pipeline.api", "firmware_pipeline.inspection", "firmware_pipeline.inputs.detect",
    "firmware_pipeline.cache",
}  # fmt: skip
JUDGING = {"cryptography", "cbor2", "attestation.cose"}
NEEDED = {
    "copy": set(), "pull": set(), "export": set(), "import_": {"firmware_pipeline.cache"},
    "push": {"firmware_pipeline.inputs.detect"}, "pack": {"firmware_pipeline.inputs.detect"},
    "index": {"firmware_pipeline.inputs.detect"}, "gc": {"firmware_pipeline.cache"},
    "inspect": {"firmware_pipeline.inspection", *JUDGING}, "diff": {"firmware_pipeline.inspection", *JUDGING},
    "verify": JUDGING, "serve": {"firmware_pipeline.cache", "http.server"},
}  # fmt: skip


@pytest.mark.parametrize("module", NEEDED)
def test_a_verb_imports_what_it_needs_and_no_more(module: str) -> None:
    """Half of a short call's time would be imports: registries, keys and bars are loaded where one is used."""
    script = f"import sys, firmware_pipeline.cli.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == NEEDED[module]


def test_a_copy_of_what_is_not_released_loads_no_cryptography(tmp_path: Path, environment: dict[str, str]) -> None:
    """Nor does it show bars where nobody looks."""
    shell(f"firmware-pipeline pack {' '.join(builds.write_parts(tmp_path))} -o layout", tmp_path, environment)
    script = """
import sys
from firmware_pipeline.cli import app
try: app(["cp", "oci:layout:latest", "oci:copy:1"])
except SystemExit as end: assert not end.code
print({"cryptography", "rich", "requests", "firmware_pipeline.api"} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_version_names_what_security_rests_on(tmp_path: Path, environment: dict[str, str]) -> None:
    first, libraries = shell("firmware-pipeline --version", tmp_path, environment).stdout.splitlines()
    assert re.fullmatch(r"firmware-pipeline \d+\.\d+\.\d+", first)
    assert re.findall(r"(cryptography|requests|oras|Python) \d", libraries)
    assert libraries.count("OpenSSL") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_of_a_push(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals, code: int
) -> None:
    """The registry stops answering after the first signature; the user stops the program: no tag, no traceback."""
    inputs, hangs = builds.write_parts(tmp_path), threading.Event()
    shell("firmware-pipeline keygen k", tmp_path, environment)
    with HostileRegistry() as registry:

        def hang(tag: str) -> None:
            assert tag.startswith("sha256-")
            hangs.set()
            registry.released.wait()

        registry.on_tag = hang
        command = [PROGRAM, "push", *inputs, f"{registry.host}/porch:1", "--plain-http", "--sign", "k.key"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                assert hangs.wait(30)
                process.send_signal(number)
                out, error = process.communicate(timeout=30)
            finally:
                process.kill()
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert out == ""
    assert "1" not in registry.tags


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_says_what_was_left(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals, code: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(30)
        reference = f"127.0.0.1:{mute.getsockname()[1]}/porch:1"
        words = [PROGRAM, "pull", reference, "--plain-http", "--unverified", "--chip", "esp32", "-o", "out"]
        with (
            subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process,
            mute.accept()[0],
        ):
            process.send_signal(number)
            _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (code, "interrupted: no tag was moved and no unfinished file was left\n")
    assert not (tmp_path / "out").exists()


def test_no_verb_prints_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb that speaks to a registry, with good and with refused credentials, of every source."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    inputs = " ".join(builds.write_parts(tmp_path))
    with HostileRegistry(auth="token", username="ci", password=SECRET) as registry:
        where = f"{registry.host}/porch"
        login = "--plain-http --username ci --password-stdin"
        auths = {"auths": {registry.host: {"username": "ci", "password": SECRET}}}
        (tmp_path / "config.json").write_text(json.dumps(auths))
        stored = f"--plain-http --registry-config {tmp_path}/config.json"
        calls = [
            "keygen k",
            f"push {inputs} {where}:1 {login} --sign k.key",
            f"push {inputs} {where}:1 {login} --dry-run",
            f"push {inputs} {where}:1 {stored} --json",
            f"inspect {where}:1 {stored}",
            f"inspect {where}:1 {login} --json",
            f"verify {where}:1 {login} --key k.pub --explain",
            f"verify {where}:1 {stored} --key k.pub --json --layers",
            f"pull {where}:1 {login} --chip esp32c3 -o out --unverified",
            f"index {where}:2 {where}:1 {login} --sign k.key",
            f"cp {where}:2 oci:carried:2 {stored}",
            f"cp oci:carried:2 {where}:3 {login}",
            f"diff {where}:1 {where}:2 {login}",
            f"sign {where}:1 {stored} --key k.key",
        ]
        said = ""
        for call in calls:
            for password in (SECRET, f"{SECRET}-wrong") if "--password-stdin" in call else (SECRET,):
                done = CliRunner().invoke(app, call.split(), input=f"{password}\n")
                said += done.output + repr(done.exception)
                assert done.exit_code == (0 if password == SECRET else 4), (call, done.output)
        tokens = [header.split()[-1] for header in registry.secrets_seen()]
    private = (tmp_path / "k.key").read_text().splitlines()[1]
    assert len(set(tokens)) > 10
    for secret in (SECRET, private, *tokens):
        assert secret not in said
