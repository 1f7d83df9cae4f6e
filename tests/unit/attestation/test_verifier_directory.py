# SPDX-License-Identifier: Apache-2.0
"""The trust directory, and ``attest`` on top of it."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from attestation import cli, keys
from attestation.anchors import DeviceState, Floors
from attestation.directory import TrustDirectory, base64url, read_policy
from attestation.keys import Alg
from attestation.policy import AttestationPolicySpec, Measurement, RootOfTrust
from tests.unit.attestation.world import Minted, digest, policy, private_key, rejects

NONCE = bytes(range(32))
DEVICE = Minted(nonce=NONCE)


def spec(device: Minted = DEVICE, **changes: Any) -> dict[str, Any]:
    return {
        "id": device.ueid.hex(),
        "trustAnchor": {"coseKey": base64url(keys.encode_cose(device.key("uds").public_key()))},
        "rootOfTrust": "SignedBoot",
        "policyRef": {"name": "default"},
        "connection": {"network": {"address": "192.0.2.7:80"}},
        **changes,
    }


def write_policy(store: TrustDirectory, content: AttestationPolicySpec, name: str = "default") -> None:
    text = yaml.safe_dump(json.loads(content.model_dump_json(by_alias=True, exclude_none=True)))
    (store.root / "policies" / f"{name}.yaml").write_text(text)


@pytest.fixture
def store(tmp_path: Path) -> TrustDirectory:
    directory = TrustDirectory.create(tmp_path / "trust")
    directory.enroll(spec())
    write_policy(directory, policy(DEVICE))
    return directory


def test_an_enrolled_device_is_found_by_both_ids(store: TrustDirectory) -> None:
    found = store.by_ueid(DEVICE.ueid)
    assert found is not None
    assert (found.tier, found.policy, found.state) == (RootOfTrust.SIGNED_BOOT, "default", DeviceState.ACTIVE)
    assert store.by_anchor_id(found.anchor_id) == found
    assert store.by_anchor_id(bytes(20)) is None
    assert store.by_ueid(bytes(33)) is None
    device = store.device(DEVICE.ueid)
    assert device is not None
    assert device["spec"]["connection"] == {"network": {"address": "192.0.2.7:80"}}


def test_files_are_the_owners_alone(store: TrustDirectory) -> None:
    store.write_grant_key(private_key(Alg.ES256, b"grant"))
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.root / "grant.key").stat().st_mode) == 0o600
    assert keys.key_id(store.grant_key().public_key())
    rejects("store.invalid", lambda: store.write_grant_key(private_key(Alg.ES256, b"other")))
    (store.root / "grant.key").chmod(0o644)
    rejects("store.invalid", store.grant_key)
    store.root.chmod(0o755)
    rejects("store.invalid", lambda: TrustDirectory(store.root))
    rejects("store.unavailable", lambda: TrustDirectory(store.root / "nowhere"))


def test_anchor_and_root_of_trust_never_change(store: TrustDirectory) -> None:
    rejects("store.invalid", lambda: store.enroll(spec(rootOfTrust="Isolated")))
    rejects("store.invalid", lambda: store.enroll(spec(trustAnchor=None)))
    store.confirm(DEVICE.ueid, Floors(3, 4, 5), [DEVICE.measurement])
    store.enroll(spec(suspended=True))
    found = store.by_ueid(DEVICE.ueid)
    assert found is not None
    assert found.state is DeviceState.SUSPENDED
    assert store.floors(DEVICE.ueid) == Floors(3, 4, 5)


def test_enrolment_checks_key_and_identity(store: TrustDirectory) -> None:
    other = Minted(seed=b"device two")
    rejects("anchor.mismatch", lambda: store.enroll(spec(other, id=bytes(33).hex())))
    rejects("store.invalid", lambda: store.enroll(spec(other, id="../x")))
    rejects("store.invalid", lambda: store.enroll(spec(other, rootOfTrust="Strong")))
    rejects("store.invalid", lambda: store.enroll(spec(other, suspended="no")))
    rejects("store.invalid", lambda: store.enroll(spec(other, trustAnchor={"coseKey": "a+/="})))
    rejects("key.structure", lambda: store.enroll(spec(other, trustAnchor={"coseKey": base64url(b"\x80")})))
    assert store.by_ueid(other.ueid) is None


def test_floors_only_rise(store: TrustDirectory) -> None:
    assert store.floors(DEVICE.ueid) == Floors()
    store.confirm(DEVICE.ueid, Floors(3, 9, 12), [DEVICE.measurement])
    store.confirm(DEVICE.ueid, Floors(2, 10, 5), [Measurement.of_hash(digest("app 3.0"))])
    assert store.floors(DEVICE.ueid) == Floors(3, 10, 12)
    assert store.confirmed(DEVICE.ueid) == (Measurement.of_hash(digest("app 3.0")),)


def test_damaged_files_reject_and_are_not_skipped(store: TrustDirectory) -> None:
    path = store.root / "devices" / f"{DEVICE.ueid.hex()}.json"
    good = path.read_text()
    for bad in ("", "{", "[]", "{}", json.dumps({"spec": {}}), good.replace("SignedBoot", "Signed"), "x" * 70_000):
        path.write_text(bad)
        rejects("store.invalid", lambda: store.by_ueid(DEVICE.ueid))
        rejects("store.invalid", lambda: store.by_anchor_id(DEVICE.anchor().anchor_id))
    path.write_text(good)
    path.rename(path.with_name(f"{bytes(33).hex()}.json"))
    rejects("store.invalid", lambda: store.by_ueid(bytes(33)))


def test_what_cannot_be_read_or_written_is_unavailable(store: TrustDirectory, tmp_path: Path) -> None:
    path = store.root / "devices" / f"{DEVICE.ueid.hex()}.json"
    path.write_text(path.read_text() + " " * 70_000)
    rejects("store.invalid", lambda: store.by_ueid(DEVICE.ueid))
    path.unlink()
    path.mkdir()
    rejects("store.unavailable", lambda: store.by_ueid(DEVICE.ueid))
    rejects("store.unavailable", store.grant_key)
    (tmp_path / "file").write_text("")
    rejects("store.unavailable", lambda: TrustDirectory.create(tmp_path / "file" / "trust"))
    path.rmdir()
    path.parent.rmdir()
    rejects("store.unavailable", lambda: store.enroll(spec()))


def test_71_policies(store: TrustDirectory, tmp_path: Path) -> None:
    assert store.policy("default") == policy(DEVICE)
    assert store.policy("another") is None
    rejects("policy.invalid", lambda: store.policy("../default"))
    path = store.root / "policies" / "bad.yaml"
    for bad in ("", "{}", "- 1", "a: [", "unknown: 1", "kind: Device\nspec: {}", "nonceTtlSeconds: 2026-01-01"):
        path.write_text(bad)
        rejects("policy.invalid", lambda: store.policy("bad"))
    whole = {"apiVersion": "flashjob.dev/v1alpha1", "kind": "AttestationPolicy", "metadata": {"name": "x"}, "spec": {}}
    path.write_text(yaml.safe_dump(whole))
    assert read_policy(path) == AttestationPolicySpec()


def test_one_writer_per_device(store: TrustDirectory) -> None:
    with store.locked(DEVICE.ueid):
        rejects("store.unavailable", lambda: store.locked(DEVICE.ueid).__enter__())
    with store.locked(DEVICE.ueid):
        pass
    rejects("store.unavailable", lambda: store.locked(bytes(33)).__enter__())


def test_public_keys(store: TrustDirectory) -> None:
    pem = keys.to_pem(private_key(Alg.ES256, b"release").public_key())
    (store.root / "release" / "owner.pub").write_text(pem)
    (store.root / "signers" / "ci.pub").write_text(pem)
    assert list(store.release_keys()) == ["owner"]
    assert store.signers() == {"ci": pem}
    (store.root / "release" / "bad.pub").write_text("no key")
    assert "bad.pub" in str(rejects("key.structure", store.release_keys))


def run(store: TrustDirectory, evidence: bytes, *options: str, command: str = "verify") -> Result:
    path = store.root / "evidence"
    path.write_bytes(evidence)
    arguments = ["--trust", str(store.root), "--nonce", NONCE.hex()] if command == "verify" else []
    return CliRunner().invoke(cli.app, [command, str(path), *arguments, *options])


def test_attest_verify_says_proven(store: TrustDirectory) -> None:
    result = run(store, DEVICE.evidence(), "--expect", DEVICE.measurement.full, "--boot-id", DEVICE.boot_id.hex())
    assert result.exit_code == cli.Exit.PROVEN, result.output
    assert "proven" in result.output
    content = json.loads(run(store, DEVICE.evidence(), "--json").output)
    assert content["accepted"]
    assert content["device"]["application"] == "porch"
    assert content["device"]["measurement"] == DEVICE.measurement.full
    assert len(content["trail"]) == 16


def test_attest_verify_says_why_not(store: TrustDirectory) -> None:
    result = run(store, Minted(nonce=NONCE, code="app 1.0").evidence())
    assert result.exit_code == cli.Exit.REJECTED
    assert "ref.code" in result.output
    assert run(store, Minted(nonce=bytes(32)).evidence()).exit_code == cli.Exit.REJECTED
    assert run(store, b"garbage").exit_code == cli.Exit.REJECTED
    stranger = run(store, Minted(seed=b"device two", nonce=NONCE).evidence())
    assert stranger.exit_code == cli.Exit.REJECTED
    assert "device.unknown" in stranger.output


def test_attest_verify_below_the_demanded_root_of_trust(store: TrustDirectory) -> None:
    write_policy(store, policy(DEVICE, min_root_of_trust=RootOfTrust.ISOLATED))
    result = run(store, DEVICE.evidence())
    assert result.exit_code == cli.Exit.UNPROVEN
    assert "not proven: a root of trust of Isolated" in result.output


def test_attest_verify_without_a_usable_policy(store: TrustDirectory) -> None:
    (store.root / "policies" / "default.yaml").write_text("modes: [normal]")
    result = run(store, DEVICE.evidence())
    assert result.exit_code == cli.Exit.TRUST
    assert "policy.invalid" in result.output
    os.unlink(store.root / "policies" / "default.yaml")
    assert run(store, DEVICE.evidence()).exit_code == cli.Exit.TRUST


@pytest.mark.parametrize(
    "options", [["--expect", "sha256:00"], ["--expect", "sha256:" + "00" * 64], ["--boot-id", "xyz"]]
)
def test_attest_verify_usage(store: TrustDirectory, options: list[str]) -> None:
    assert run(store, DEVICE.evidence(), *options).exit_code == cli.Exit.USAGE


def test_attest_explain_verifies_nothing_and_says_so(store: TrustDirectory) -> None:
    result = run(store, Minted(nonce=NONCE, seed=b"stranger").evidence(), command="explain")
    assert result.exit_code == 0
    assert "Not verified" in result.output
    content = json.loads(run(store, DEVICE.evidence(), "--json", command="explain").output)
    assert content["layer 1"]["code"] == DEVICE.measurement.full
    assert content["token"]["slot state"] == "VALID"
    assert run(store, b"garbage", command="explain").exit_code == cli.Exit.REJECTED
