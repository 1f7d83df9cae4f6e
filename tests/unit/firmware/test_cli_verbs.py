# SPDX-License-Identifier: Apache-2.0
"""The verbs that look, compare, join and copy, as a user calls them: what they print and how they end."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from firmware_pipeline.cli import app
from firmware_pipeline.esp.builder import build_app
from tests.unit.firmware import builds
from tests.unit.firmware.hostile_registry import HostileRegistry


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, with keys."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run("keygen", "signer")
    run("keygen", "release")
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def build(name: str, chip: str = "esp32c3", version: str = "2.1.0", secure_version: int = 0) -> list[str]:
    folder = Path(name)
    folder.mkdir()
    image = build_app(chip, "porch-sensor", version, payload_size=builds.PAYLOAD, secure_version=secure_version)
    return builds.write_parts(folder, chip, app=image)


KEYS = ("--sign", "signer.key", "--release-key", "release.key", "--sequence")


def test_dry_run_shows_all_and_sends_nothing() -> None:
    inputs = build("c3")
    with HostileRegistry() as registry:
        where = [f"{registry.host}/porch:stable", "--plain-http"]
        shown = run("push", *inputs, *where, *KEYS, 21, "--dry-run", "--digest-file", "dry")
        assert {seen.method for seen in registry.seen} <= {"HEAD", "GET"}
        assert "new; nothing was sent" in shown.stdout
        assert '"artifactType": "application/vnd.flashjob.firmware.index.v1"' in shown.stdout
        pushed = run("push", *inputs, *where, *KEYS, 21, "--digest-file", "real", "--quiet")
        assert pushed.stdout == shown.stdout.splitlines()[-1] + "\n"
        assert Path("dry").read_text() == Path("real").read_text()
        report = json.loads(run("push", *inputs, *where, *KEYS, 22, "--dry-run", "--json").stdout)
        assert report["moved"] == {"stable": Path("real").read_text().strip()}
        assert 0 < report["newBytes"] < 3000 < report["totalBytes"]
        assert set(report["manifests"]) == {"esp32c3", "index"}
        again = run("push", *inputs, *where, *KEYS, 22)
        assert f"moved: the tag stable named {Path('real').read_text().strip()} before" in again.stderr


def test_index_of_two_jobs_then_cp_then_diff() -> None:
    with HostileRegistry() as registry:
        host, http = registry.host, "--plain-http"
        run("push", *build("c3"), f"{host}/porch:c3", *KEYS, 21, http)
        run("pack", *build("s3", "esp32s3"), "-o", "jobs/s3", *KEYS, 21)
        joined = run("index", f"{host}/porch:2.1.0", f"{host}/porch:c3", "jobs/s3", "--sign", "signer.key",
                     "--key", "signer.pub", "--also-tag", "latest", http, "--json")  # fmt: skip
        report = json.loads(joined.stdout)
        assert [chip["chip"] for chip in report["chips"]] == ["esp32c3", "esp32s3"]
        assert registry.tags["latest"] == registry.tags["2.1.0"] == report["digest"]
        assert (
            "InputDisagrees: "
            in run("index", f"{host}/porch:x", f"{host}/porch:c3", f"{host}/porch:2.1.0", http, code=3).stderr
        )
        copied = run("cp", f"{host}/porch:2.1.0", "oci:carried:2.1.0", "--key", "signer.pub", http)
        assert copied.stdout == f"oci:carried@{report['digest']}\n"
        run("verify", "carried", "--key", "signer.pub", "--layers")
        run("diff", f"{host}/porch:2.1.0", "carried", http)
        different = run("diff", f"{host}/porch:c3", "carried", http, "--json", code=1)
        assert {row["kind"] for row in json.loads(different.stdout)["changes"]} == {"added"}
    run("index", "oci:out:1", code=2)
    run("cp", "carried", "oci:other:1", "--threshold", 2, code=2)
    run("cp", "carried", "not-a-reference", code=2)
    assert "SignatureInvalid" in run("cp", "carried", "oci:other:1", "--key", "release.pub", code=6).stderr
    assert not Path("other").exists()


def test_diff_in_words() -> None:
    run("pack", *build("old"), "-o", "one", *KEYS, 21)
    run("pack", *build("new", version="2.2.0"), "-o", "two", *KEYS, 22)
    shown = run("diff", "one", "two", code=1).stdout.splitlines()
    assert shown[0] == "esp32c3"
    assert "  ~ app.version: 2.1.0 -> 2.2.0" in shown
    assert "  ~ release.sequence: 21 -> 22" in shown
    assert run("diff", "one", "one").stdout == ""


def test_verify_explains_every_rule() -> None:
    run("pack", *build("c3", secure_version=2), "-o", "layout", *KEYS, 21)

    def verify(*device: object, code: int) -> Result:
        return run("verify", "layout", "--key", "signer.pub", "--layers", "--explain", *device, code=code)

    words = [line.split()[0] for line in verify(code=0).stderr.splitlines()]
    assert words == ["passed"] * 6
    good = verify("--device-sequence", 20, "--device-version", "9.9", "--device-secure-version", 2, code=0)
    assert "undecided  esp32c3 version: version '2.1.0': the release sequence has decided." in good.stderr
    older = verify("--device-sequence", 22, code=6)
    assert "refused    esp32c3 release sequence: release 21, the device has 22." in older.stderr
    assert "DowngradeNotAllowed: " in older.stderr
    assert older.stdout == ""
    assert "allowed    esp32c3 release" in verify("--device-sequence", 22, "--allow-downgrade", code=0).stderr
    never = verify("--device-secure-version", 3, "--allow-downgrade", code=6)
    assert "SecurityVersionTooLow: " in never.stderr
    assert "can be compared" in verify("--device-version", "main", code=6).stderr
    unsigned = run("verify", "layout", "--key", "release.pub", "--explain", "--json", code=6)
    report = json.loads(unsigned.stdout.splitlines()[0])
    assert (report["accepted"], report["signers"], report["chips"]) == (False, [], [])
    assert [check["reason"] for check in report["checks"]] == ["SignatureInvalid"]


def test_verify_finds_bytes_that_are_not_what_the_config_says() -> None:
    """Nobody but a signer can make such an artifact; `--layers` still finds it."""
    run("pack", *build("c3"), "-o", "layout", *KEYS, 21)
    for blob in Path("layout/blobs/sha256").iterdir():
        if blob.stat().st_size > builds.PAYLOAD:
            blob.chmod(0o644)
            blob.write_bytes(b"?" * blob.stat().st_size)
    assert "DigestMismatch: " in run("verify", "layout", "--key", "signer.pub", "--layers", code=6).stderr
    run("verify", "layout", "--key", "signer.pub")


def test_inspect_for_people_and_programs() -> None:
    run("pack", *build("c3", secure_version=2), "-o", "layout", *KEYS, 21, "--platform-feature", "psram>=8M",
        "--annotation", "team=garden")  # fmt: skip
    shown = run("inspect", "layout").stdout
    for words in (
        "team: garden",
        "claims key",
        "psram>=8M",
        "secure version 2",
        "partition nvs",
        "measurement esp-image sha512",
    ):
        assert words in shown
    assert shown.count("measurement") >= 4, "application and bootloader"
    (chip,) = json.loads(run("inspect", "layout", "--json").stdout)["chips"]
    assert chip["platform"]["os.features"] == ["psram>=8M"]
    assert chip["secureVersion"] == chip["config"]["app"]["secureVersion"] == 2


def test_options_that_are_wrong() -> None:
    inputs = build("c3")
    run("pack", *inputs, "-o", "x", "--platform-feature", "wifi", code=2)
    run("pack", *inputs, "-o", "x", "--platform-feature", "esp32s3:psram>=8M", code=2)
    run("pack", *inputs, "-o", "x", "--created", "yesterday", code=2)
    run("pack", *inputs, "-o", "x", "--created", "2026-01-31T12:00:00", code=2)
    run("pack", *inputs, "-o", "x", "--annotation", "a=1", "--annotation", "a=2", code=2)
    assert not Path("x").exists()
    run("pack", *inputs, "-o", "x", "--created", "2026-01-31T14:00:00+02:00")
    annotations = json.loads(run("inspect", "x", "--json").stdout)["annotations"]
    assert annotations["org.opencontainers.image.created"] == "2026-01-31T12:00:00Z"
