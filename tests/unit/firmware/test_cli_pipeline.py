# SPDX-License-Identifier: Apache-2.0
"""`firmware-pipeline` as a user or a CI job meets it: real processes for what a shell sees, exit codes, no secret."""

import contextlib
import json
import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from firmware_pipeline.cli import app
from firmware_pipeline.errors import Reason
from firmware_pipeline.exit_codes import exit_code
from tests.unit.firmware import builds
from tests.unit.firmware.hostile_registry import HostileRegistry

PINNED = re.compile(r"\S+@sha256:[0-9a-f]{64}\Z")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own: no credentials of the person who runs the tests."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, stdin: str = "", code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """An ESP-IDF build folder and a second chip's files."""
    (tmp_path / "c3").mkdir()
    folder = tmp_path / "build"
    folder.mkdir()
    return [str(builds.write_espidf(folder)), *(f"esp32-c3:{a}" for a in builds.write_parts(tmp_path / "c3"))]


@pytest.fixture
def keys(place: Path) -> list[str]:
    run("keygen", "signer")
    run("keygen", "release", "--type", "ed25519")
    return ["--sign", "signer.key", "--release-key", "release.key", "--sequence", "21"]


def test_pack_inspect_verify_pull(place: Path, inputs: list[str], keys: list[str]) -> None:
    packed = run("pack", *inputs, "-o", "layout", "--tag", "2.1.0", *keys, "--digest-file", "digest")
    pinned = packed.stdout.splitlines()[-1]
    digest = pinned.partition("@")[2]
    assert PINNED.match(pinned)
    assert Path("digest").read_text() == digest + "\n"
    shown = run("inspect", "layout").stdout
    assert "esp32c3: porch-sensor 2.1.0, release sequence 21" in shown
    assert "signatures: 2" in shown
    for reference in ("layout", "oci:layout:2.1.0", f"layout@{digest}"):
        assert run("verify", reference, "--key", "signer.pub", "--layers").stdout.strip().endswith(digest)
    pulled = run("pull", "layout", "--chip", "ESP32-S3", "-o", "out", "--key", "signer.pub", "--json")
    assert json.loads(pulled.stdout)["releaseSequence"] == 21
    assert Path("out/esp32s3/porch-sensor.bin").read_bytes() == (place / "build/porch-sensor.bin").read_bytes()
    assert sorted(path.name for path in Path("out/esp32s3").iterdir()) == [
        "bootloader.bin",
        "config.json",
        "ota_data_initial.bin",
        "partition-table.bin",
        "porch-sensor.bin",
        "release.cose",
    ]


def test_push_prints_what_a_flashjob_names(inputs: list[str], keys: list[str]) -> None:
    with HostileRegistry(auth="token", username="ci", password="s3cret") as registry:
        where = f"{registry.host}/team/porch:2.1.0"
        login = ["--plain-http", "--username", "ci", "--password-stdin"]
        pushed = run("push", *inputs, where, *keys, *login, "--also-tag", "latest", stdin="s3cret\n")
        pinned = pushed.stdout.splitlines()[-1]
        assert pinned.startswith(f"{registry.host}/team/porch@sha256:")
        assert set(registry.tags) >= {"2.1.0", "latest"}
        as_json = run("push", *inputs, where, *keys, *login, "--json", stdin="s3cret\n")
        report = json.loads(as_json.stdout)
        assert report["reference"] == pinned
        assert [chip["chip"] for chip in report["chips"]] == ["esp32c3", "esp32s3"]
        verified = run("verify", where, "--key", "signer.pub", *login, stdin="s3cret\n")
        assert verified.stdout.strip() == pinned
        assert "s3cret" not in pushed.output + as_json.output + verified.output


def test_credentials_come_from_docker_config(
    place: Path, inputs: list[str], keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with HostileRegistry(auth="basic", username="ci", password="s3cret") as registry:
        (place / "docker").mkdir()
        auths = {registry.host: {"username": "ci", "password": "s3cret"}}
        (place / "docker/config.json").write_text(json.dumps({"auths": auths}))
        where = f"{registry.host}/porch:1"
        run("push", *inputs, where, *keys, "--plain-http", code=4)
        run("push", *inputs, where, *keys, "--plain-http", "--registry-config", place / "docker/config.json")
        monkeypatch.setenv("DOCKER_CONFIG", str(place / "docker"))
        run("inspect", where, "--plain-http")


def test_exit_2_usage(inputs: list[str], keys: list[str]) -> None:
    run("pack", *inputs, code=2)
    run("pack", *inputs, "-o", "x", "--sequence", "1", code=2)
    run("pack", *inputs, "-o", "x", "--annotation", "novalue", code=2)
    run("pack", *inputs, "-o", "x", "--sign", "absent.key", code=2)
    run("pack", *inputs, "-o", "x", "--sign", "signer.pub", code=2)
    run("push", *inputs, "not-a-reference", code=2)
    run("push", *inputs, "127.0.0.1:9/a:1", "--password-stdin", code=2)
    run("verify", "127.0.0.1:9/a:1", code=2)
    run("pull", "127.0.0.1:9/a:1", "--chip", "esp32", "-o", "y", code=2)
    run("pull", "x", "--chip", "esp32", "-o", "y", "--unverified", "--key", "signer.pub", code=2)
    run("keygen", "k", "--type", "rsa", code=2)
    assert not Path("x").exists()


def test_exit_3_invalid_build(place: Path, inputs: list[str]) -> None:
    run("pack", "nowhere", "-o", "x", code=3)
    run("pack", "0x10000=nowhere.bin", "-o", "x", code=3)
    run("pack", "esp99:0x10000=nowhere.bin", "-o", "x", code=3)
    broken = place / "c3/app.bin"
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    error = run("pack", *inputs, "-o", "x", code=3).stderr
    assert error.startswith("ImageHashMismatch: "), error
    assert "\nNext: " in error
    assert not Path("x").exists()


def test_exit_4_login(inputs: list[str]) -> None:
    with HostileRegistry(auth="token", username="ci", password="s3cret") as registry:
        where, login = f"{registry.host}/a:1", ["--plain-http", "--username", "ci", "--password-stdin"]
        error = run("push", *inputs, where, *login, stdin="wr0ng\n", code=4).stderr
        assert "RegistryUnauthorized" in error
        assert "wr0ng" not in error
        assert registry.tags == {}


def test_exit_5_network(inputs: list[str]) -> None:
    with HostileRegistry(busy=9, retry_after="99") as registry:
        run("push", *inputs, f"{registry.host}/a:1", "--plain-http", code=5)
        registry.knobs.busy = 0
        run("inspect", f"{registry.host}/a:1", "--plain-http", code=5)
    run("inspect", "oci-layout-that-is-not/there", code=2)
    run("inspect", "oci:not-there", code=5)


def test_exit_6_checks(inputs: list[str], keys: list[str]) -> None:
    run("pack", *inputs, "-o", "signed", *keys)
    run("pack", *inputs, "-o", "unsigned")
    run("keygen", "other")
    assert "SignatureInvalid" in run("verify", "signed", "--key", "other.pub", code=6).stderr
    assert "UnsignedArtifact" in run("verify", "unsigned", "--key", "signer.pub", code=6).stderr
    assert (
        "SignatureThreshold"
        in run("verify", "signed", "--key", "other.pub", "--key", "signer.pub", "--threshold", 2, code=6).stderr
    )
    assert "PlatformMissing" in run("pull", "signed", "--chip", "esp32", "-o", "y", "--unverified", code=6).stderr
    run("pull", "unsigned", "--chip", "esp32s3", "-o", "y", "--key", "signer.pub", code=6)
    assert not Path("y").exists()
    for blob in Path("signed/blobs/sha256").iterdir():
        if blob.stat().st_size > 50_000:
            blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert "DigestMismatch" in run("verify", "signed", "--key", "signer.pub", "--layers", code=6).stderr
    run("pull", "signed", "--chip", "esp32s3", "-o", "z", "--key", "signer.pub", code=6)
    assert not list(Path("z").rglob("porch-sensor.bin*"))


def test_unsigned_and_unreleased_is_said(inputs: list[str]) -> None:
    warned = run("pack", *inputs, "-o", "x").stderr
    assert "not signed" in warned
    assert "no release statement" in warned


def test_keys_are_private_and_never_replaced() -> None:
    old = os.umask(0o002)
    try:
        run("keygen", "k")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat("k.key").st_mode) == 0o600
    before = Path("k.key").read_bytes()
    run("keygen", "k", code=1)
    Path("k.key").unlink()
    run("keygen", "k", code=1)
    assert not Path("k.key").exists()
    assert b"PRIVATE" in before


def test_every_reason_has_a_documented_exit_code() -> None:
    assert {exit_code(reason) for reason in Reason} <= {1, 2, 3, 4, 5, 6}
    assert exit_code(Reason.InputMalformed) == 3


def test_as_a_process_in_a_pipe_there_is_no_bar_and_no_colour(inputs: list[str], keys: list[str]) -> None:
    program = [sys.executable, "-m", "firmware_pipeline.cli", "pack", *inputs, "-o", "layout", *keys]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert PINNED.match(done.stdout.splitlines()[-1])
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stderr


def test_on_a_terminal_there_is_a_bar(inputs: list[str], keys: list[str]) -> None:
    program = [sys.executable, "-m", "firmware_pipeline.cli", "pack", *inputs, "-o", "layout", *keys]
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=slave, env=environment, text=True) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # a pty reports the end as an error
            while chunk := os.read(master, 4096):
                shown += chunk
        os.close(master)
        assert process.stdout is not None
        out = process.stdout.read()
    assert process.returncode == 0
    assert b"esp32s3/porch-sensor.bin" in shown
    assert PINNED.match(out.splitlines()[-1])
    assert "\x1b" not in out
