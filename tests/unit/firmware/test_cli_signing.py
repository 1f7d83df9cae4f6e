# SPDX-License-Identifier: Apache-2.0
"""sign, attach, release and verify's policy as a user meets them."""

import json
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from firmware_pipeline.cli import app
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.signing.keys import PASSWORD_VARIABLE
from tests.unit.firmware import builds
from tests.unit.firmware.signed import CYCLONEDX
from tests.unit.firmware.test_signing_signers import KMS

BUILDER = "https://ci.example/builders/1"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with keys, a build and an SBOM, and no credentials of the person who runs the tests."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", PASSWORD_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("ci", "qa", "owner"):
        run("keygen", name)
    (tmp_path / "build").mkdir()
    builds.write_espidf(tmp_path / "build")
    (tmp_path / "sbom.json").write_text(json.dumps(CYCLONEDX))
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert "PRIVATE KEY" not in result.output
    return result


def pack(*more: str) -> str:
    return run("pack", "build", "-o", "layout", "--tag", "1", "--sign", "ci.key", *more).stdout.splitlines()[-1]


def verify(*more: str, code: int = 0) -> str:
    return run("verify", "oci:layout:1", "--key", "ci.pub", *more, code=code).output


def test_a_second_signature_reaches_the_threshold() -> None:
    pinned = pack()
    both = ("--key", "qa.pub", "--threshold", "2")
    assert "SignatureThreshold" in verify(*both, code=6)
    assert run("sign", "oci:layout:1", "--key", "qa.key", "--annotation", "stage=prod").stdout == f"{pinned}\n"
    assert pinned in verify(*both)
    assert "AnnotationMissing" in verify(*both, "--require-annotation", "stage=prod", code=6)
    assert "qa.pub" in verify("--key", "qa.pub", "--require-annotation", "stage=prod")


def test_documents_with_the_pack_satisfy_the_policy() -> None:
    pack("--sbom", "esp32s3=sbom.json", "--provenance", "--builder", BUILDER)
    demands = ("--require-sbom", "--require-provenance", "--builder", BUILDER, "--identity-prefix", "porch-sensor")
    assert "Signed by ci.pub" in verify(*demands)
    assert "BuilderNotTrusted" in verify("--builder", "https://other.example", code=6)
    assert "IdentityMismatch" in verify("--identity-prefix", "registry.example", code=6)


@pytest.mark.parametrize("sign", [True, False])
def test_what_is_attached_later_counts_if_it_is_signed(sign: bool) -> None:
    pack()
    assert "SbomMissing" in verify("--require-sbom", code=6)
    more = ["--sign", "ci.key"] if sign else []
    result = run("attach", "oci:layout:1", "--sbom", "sbom.json", "--chip", "esp32-s3", *more, "--json")
    report = json.loads(result.stdout.splitlines()[-1])
    assert (report["signed"], len(report["attached"])) == (sign, 2 if sign else 1)
    assert ("no policy will count it" in result.stderr) is not sign
    verify("--require-sbom", code=0 if sign else 6)


def test_provenance_from_a_file_goes_to_index_and_chips(place: Path) -> None:
    pack()
    predicate = {
        "buildDefinition": {"buildType": "https://example.org/x", "externalParameters": {}},
        "runDetails": {"builder": {"id": BUILDER}},
    }
    (place / "provenance.json").write_text(json.dumps(predicate))
    report = run("attach", "oci:layout:1", "--provenance", "provenance.json", "--sign", "ci.key", "--json").stdout
    assert len(json.loads(report)["subjects"]) == 2
    assert "Signed by" in verify("--builder", BUILDER)


def test_released_where_the_owners_key_is_and_with_another_key_next_time(place: Path) -> None:
    first = pack()
    assert "ReleaseMissing" in verify("--release-key", "owner.pub", code=6)
    done = run("release", "oci:layout:1", "--key", "owner.key", "--sequence", "4", "--sign", "ci.key", "--json")
    report = json.loads(done.stdout)
    assert (report["from"] in first, report["chips"], report["signed"]) == (True, ["esp32s3"], True)
    assert LayoutStore(place / "layout").resolve("1") == report["digest"]
    assert "passed     esp32s3 release: sequence 4, released by owner.pub" in verify(
        "--release-key", "owner.pub", "--explain"
    )
    assert "ReleaseInvalid" in verify("--release-key", "qa.pub", code=6)
    run("release", "oci:layout:1", "--key", "qa.key", "--sequence", "5", "--sign", "ci.key")
    rotating = ("--release-key", "owner.pub", "--release-key", "qa.pub", "--explain")
    assert "sequence 5, released by qa.pub" in verify(*rotating)


def test_an_encrypted_key_needs_its_password(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PASSWORD_VARIABLE in run("keygen", "safe", "--encrypt", code=2).output
    monkeypatch.setenv(PASSWORD_VARIABLE, "correct horse")
    run("keygen", "safe", "--encrypt")
    key = place / "safe.key"
    assert key.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    result = run(
        "pack",
        "build",
        "-o",
        "layout",
        "--tag",
        "1",
        "--sign",
        "safe.key",
        "--release-key",
        "safe.key",
        "--sequence",
        "1",
    )
    assert "correct horse" not in result.output
    run("verify", "oci:layout:1", "--key", "safe.pub", "--release-key", "safe.pub")
    monkeypatch.delenv(PASSWORD_VARIABLE)
    assert PASSWORD_VARIABLE in run("sign", "oci:layout:1", "--key", "safe.key", code=2).output


def test_a_program_signs_a_pack(place: Path) -> None:
    (place / "kms.py").write_text(KMS)
    run("pack", "build", "-o", "layout", "--tag", "1", "--sign", f"exec:{sys.executable} kms.py ci.key")
    assert "Signed by ci.pub" in verify()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("attach", "oci:layout:1"), 2, "name one of"),
        (("attach", "oci:layout:1", "--sbom", "sbom.json", "--file", "sbom.json"), 2, "name one of"),
        (("attach", "oci:layout:1", "--file", "sbom.json"), 2, "name one of"),
        (("attach", "oci:layout:1", "--sbom", "none.json"), 2, "none.json"),
        (("attach", "oci:layout:1", "--sbom", "ci.pub"), 3, "SbomMalformed"),
        (("attach", "oci:layout:1", "--provenance", "sbom.json"), 3, "ProvenanceMalformed"),
        (("attach", "oci:layout:1", "--sbom", "sbom.json", "--chip", "esp32c3"), 6, "PlatformMissing"),
        (("attach", "oci:layout:9", "--sbom", "sbom.json"), 5, "ReferenceNotFound"),
        (("sign", "oci:layout:1", "--key", "ci.pub"), 2, "KeyMalformed"),
        (("sign", "oci:layout:1", "--key", "none.key"), 2, "none.key"),
        (("sign", "oci:layout:1", "--key", "nokms:x"), 2, "nokms"),
        (("sign", "oci:layout:1", "--key", "exec:false"), 2, "SignerFailed"),
        (("sign", "oci:layout:1", "--key", "ci.key", "--annotation", "x"), 2, "KEY=VALUE"),
        (("release", "oci:layout:1", "--key", "ci.pub", "--sequence", "1"), 2, "KeyMalformed"),
        (("verify", "oci:layout:1"), 2, "--key"),
        (("pack", "build", "-o", "other", "--provenance"), 2, "--builder"),
        (("pack", "build", "-o", "other", "--provenance", "--builder", "me"), 3, "ProvenanceMalformed"),
        (("pack", "build", "-o", "other", "--sbom", "esp32s3=ci.pub"), 3, "SbomMalformed"),
    ],
)
def test_wrong_usage_changes_nothing(place: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    pack()
    before = sorted(path.name for path in (place / "layout").rglob("*"))
    assert said in run(*arguments, code=code).output
    assert sorted(path.name for path in (place / "layout").rglob("*")) == before
    assert not (place / "other").exists()
