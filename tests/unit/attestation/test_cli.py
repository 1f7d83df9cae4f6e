# SPDX-License-Identifier: Apache-2.0
"""`attest` as a person or a script uses it: every verb, exit codes, stdin, wrong input, Ctrl-C."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner, Result

from attestation import cli, evidence, keys, mint
from attestation.cbor import strict_loads
from attestation.cli import Exit
from attestation.cli.common import now
from attestation.directory import TrustDirectory, read_policy
from attestation.evidence_store import EvidenceStore
from attestation.keys import Alg
from attestation.policy import policy_hash
from attestation.verifier import verify
from tests.unit.attestation import test_enrolment as pki
from tests.unit.attestation.test_verifier_directory import spec, write_policy
from tests.unit.attestation.world import NOW, Minted, compressed, context, policy, private_key

NONCE = "11" * 32


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    TrustDirectory.create(tmp_path / "data/flashjob/trust")
    return tmp_path


def run(*words: str, stdin: bytes | None = None, code: Exit = Exit.PROVEN) -> Result:
    result = CliRunner().invoke(cli.app, list(words), input=stdin)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result


def out(*words: str, stdin: bytes | None = None, code: Exit = Exit.PROVEN) -> Any:
    return json.loads(run(*words, "--json", stdin=stdin, code=code).stdout)


def minted(*more: str, key: str = "uds.pem") -> dict[str, str]:
    """A key, its evidence in ev.bin, and the policy `demo` that accepts it."""
    if not Path(key).exists():
        run("mint", "key", "--out", key)
    said: dict[str, str] = out("mint", "evidence", "--key", key, "--nonce", NONCE, "--out", "ev.bin", *more)
    write = Path("data/flashjob/trust/policies/demo.yaml")
    pairs = {name: {"alg": -44, "value": said[name].partition(":")[2]} for name in ("application", "bootloader")}
    content = {name: {"measurements": [pair]} for name, pair in pairs.items()}
    write.write_text(yaml.safe_dump({**content, "authorityHashes": [said["authority"]]}))
    return said


ENROLL = ("--policy", "demo", "--root-of-trust", "SignedBoot", "--by", "ann")
WHO = ("--by", "ann", "--reason", "a drill")


@pytest.mark.parametrize("form", ["cbor", "x509"])
@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "EdDSA"])
def test_mint_makes_what_verify_accepts(home: Path, form: str, algorithm: str) -> None:
    run("mint", "key", "--out", "uds.pem", "--algorithm", algorithm, "--uds", "5a" * 32)
    minted("--form", form)
    rules = Path("data/flashjob/trust/policies/demo.yaml")
    rules.write_text(rules.read_text() + f"algorithms: [{algorithm}]\n")
    proof = run("mint", "proof", "--key", "uds.pem", "--batch", "b").stdout_bytes
    run("enroll", "factory-list", "-", "--batch", "b", *ENROLL, stdin=proof)
    assert out("verify", "ev.bin", "--nonce", NONCE)["provenAtTier"]
    assert out("explain", "ev.bin")["layer 1"]["algorithm"] == algorithm.upper()


@pytest.mark.parametrize("form", ["csv", "cbor"])
@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_from_the_factory_to_a_verdict_and_to_revocation(home: Path, form: str, algorithm: str) -> None:
    device = out("mint", "key", "--out", "uds.pem", "--algorithm", algorithm)["id"]
    minted()
    proof = run("mint", "proof", "--key", "uds.pem", "--batch", "b1", "--form", form).stdout_bytes
    listed = ("enroll", "factory-list", "-", "--batch", "b1", *ENROLL)
    assert out(*listed, stdin=proof) == {"enrolled": [device], "known": []}
    assert out(*listed, stdin=proof) == {"enrolled": [], "known": [device]}
    assert "enrol.proof" in run(
        "enroll", "factory-list", "-", "--batch", "b2", *ENROLL, stdin=proof, code=Exit.REJECTED
    ).stderr or form == "cbor"  # fmt: skip
    verdict = ("verify", "ev.bin", "--nonce", NONCE)
    assert out(*verdict)["provenAtTier"]
    assert run(*verdict, "-q").stdout.strip() == "proven"
    run("enroll", "suspend", device[:12], *WHO)
    assert out(*verdict, code=Exit.REJECTED)["code"] == "device.suspended"
    run("enroll", "quarantine", device[:12], *WHO, code=Exit.REJECTED)
    run("enroll", "release", device[:12], *WHO)
    assert out(*verdict)["accepted"]
    run("enroll", "quarantine", device[:12], *WHO)
    run("enroll", "revoke", device[:12], "--by", "bob", "--reason", "stolen")
    assert out(*verdict, code=Exit.REJECTED)["code"] == "device.revoked"
    assert "final" in run("enroll", "release", device[:12], *WHO, code=Exit.REJECTED).stderr
    (row,) = out("enroll", "list")
    assert row["standing"] == "Revoked"
    assert [(one["by"], one["standing"]) for one in row["history"]][-1] == ("bob", "Revoked")
    assert "bob" in run("enroll", "list").stdout
    assert json.loads(run("enroll", "show", device[:12]).stdout)["spec"]["enrolled"]["batch"] == "b1"
    run("enroll", "show", device[:4], code=Exit.USAGE)
    assert "no device is enrolled whose id begins" in run("enroll", "show", "00000000", code=Exit.USAGE).stderr


def test_a_second_enrolment_asks_for_the_same_or_is_refused(home: Path) -> None:
    device = out("mint", "key", "--out", "uds.pem")["id"]
    minted()
    rules = Path("data/flashjob/trust/policies")
    (rules / "other.yaml").write_bytes((rules / "demo.yaml").read_bytes())
    run("mint", "key", "--out", "fresh.pem")
    both = ("mint", "proof", "--key", "fresh.pem", "--key", "uds.pem", "--batch", "b1")
    one = run("mint", "proof", "--key", "uds.pem", "--batch", "b1", "--hwmodel", "s3").stdout_bytes
    run("enroll", "factory-list", "-", "--batch", "b1", *ENROLL, stdin=one)
    for changes, what in (
        (["--root-of-trust", "SelfReported"], "root of trust SignedBoot, not SelfReported"),
        (["--policy", "other"], "policy demo, not other"),
    ):
        refused = run("enroll", "factory-list", "-", "--batch", "b1", *ENROLL, *changes,
                      stdin=run(*both).stdout_bytes, code=Exit.REJECTED)  # fmt: skip
        assert f"enrol.known: {device}" in refused.stderr
        assert what in refused.stderr
        assert [row["id"] for row in out("enroll", "list")] == [device], "a list is enrolled whole or not at all"
    two = run("mint", "proof", "--key", "uds.pem", "--batch", "b1", "--hwmodel", "c3").stdout_bytes
    assert "hwmodel s3, not c3" in run(
        "enroll", "factory-list", "-", "--batch", "b1", *ENROLL, stdin=two, code=Exit.REJECTED
    ).stderr  # fmt: skip


@pytest.mark.parametrize("way", ["factory-list", "vendor-ca"])
def test_an_enrolment_is_somebodys(home: Path, way: str) -> None:
    minted()
    asked = ("--batch", "b") if way == "factory-list" else ("--root", "root.pem")
    refused = run("enroll", way, "nowhere", *asked, *ENROLL[:-1], " ", code=Exit.REJECTED)
    assert "standing: by must be" in refused.stderr


def test_first_use_waits_for_a_person(home: Path) -> None:
    minted()
    first = ("enroll", "first-use", "--anchor", "uds.pem.pub", "--policy", "demo", "--root-of-trust", "SignedBoot")
    waits = out(*first, "--evidence", "ev.bin", "--nonce", NONCE)["pending"]
    assert out("verify", "ev.bin", "--nonce", NONCE, code=Exit.REJECTED)["code"] == "device.unknown"
    assert [one["id"] for one in out("enroll", "pending")] == [waits]
    assert waits in run("enroll", "pending").stdout
    run("enroll", "approve", waits[:16], "--by", "ann", "--reason", " ", code=Exit.REJECTED)
    run("enroll", "approve", waits[:16], "--by", "ann", code=Exit.USAGE)
    assert out("enroll", "approve", waits[:16], *WHO)["enrolled"] == [waits]
    assert out("verify", "ev.bin", "--nonce", NONCE)["accepted"]
    assert out("enroll", "pending") == []
    assert "no device waits for approval" in run("enroll", "approve", waits[:16], *WHO, code=Exit.USAGE).stderr
    assert "enrolled already" in run(*first, "--evidence", "ev.bin", "--nonce", NONCE, code=Exit.REJECTED).stderr
    minted(key="two.pem")
    other = [word.replace("uds.pem", "two.pem") for word in first]
    assert "enrol.proof" in run(*other, "--evidence", "ev.bin", "--nonce", "22" * 32, code=Exit.REJECTED).stderr
    waits = out(*other, "--evidence", "ev.bin", "--nonce", NONCE)["pending"]
    run("enroll", "deny", waits[:16])
    assert out("enroll", "pending") == []
    for wrong in ([], ["h:1", "--evidence", "ev.bin", "--nonce", NONCE], ["--evidence", "ev.bin"]):
        run(*first, *wrong, code=Exit.USAGE)


def test_a_vendor_ca(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minted()
    monkeypatch.setattr("attestation.cli.enroll.now", lambda: NOW)
    for name, (certificate, _) in {"root": pki.ROOT, "middle": pki.MIDDLE, "leaf": pki.LEAF}.items():
        Path(f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made = out("enroll", "vendor-ca", "leaf.pem", "--root", "root.pem", "--intermediate", "middle.pem", *ENROLL)
    assert made["enrolled"] == [keys.ueid(pki.DEVICE.public_key()).hex()]
    refused = run("enroll", "vendor-ca", "leaf.pem", "--root", "root.pem", *ENROLL, code=Exit.REJECTED)
    assert "leaf.pem: issued by" in refused.stderr


def test_ask_judges_a_live_device_and_suspends_a_twin(home: Path) -> None:
    device = out("mint", "key", "--out", "uds.pem")["id"]
    minted()
    proof = run("mint", "proof", "--key", "uds.pem", "--batch", "b").stdout_bytes
    run("enroll", "factory-list", "-", "--batch", "b", *ENROLL, stdin=proof)
    boots = iter(["5", "6", "4", "7"])

    async def attest(request: web.Request) -> web.Response:
        asked = strict_loads(await request.read())
        assert isinstance(asked, dict)
        nonce = asked[1]
        assert isinstance(nonce, bytes)
        words = ("mint", "evidence", "--key", "uds.pem", "--nonce", nonce.hex(), "--boot-count", next(boots))
        return web.Response(body=await asyncio.to_thread(lambda: run(*words).stdout_bytes))

    async def play() -> list[tuple[int, dict[str, Any]]]:
        app = web.Application()
        app.router.add_post("/fj/1/attest", attest)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        found = []
        for _ in range(4):
            ask = [sys.executable, "-m", "attestation.cli", "ask", f"127.0.0.1:{port}", "--json", "--save", "saved.bin"]
            ask += ["--evidence-dir", "records"]
            process = await asyncio.create_subprocess_exec(*ask, stdout=subprocess.PIPE)
            answered, _ = await process.communicate()
            found.append((process.returncode or 0, json.loads(answered)))
        await runner.cleanup()
        return found

    first, second, twin, after = asyncio.run(play())
    assert (first[0], second[0]) == (Exit.PROVEN, Exit.PROVEN)
    assert (twin[0], twin[1]["code"]) == (Exit.REJECTED, "clone.bootcount")
    assert after[1]["code"] == "device.suspended"
    (row,) = out("enroll", "list")
    assert (row["standing"], row["history"][0]["by"]) == ("Suspended", "attest")
    rules = "data/flashjob/trust/policies/demo.yaml"
    kept = out("reappraise", "records", "--policy", rules, "--all", code=Exit.REJECTED)["devices"]
    assert [(one["outcome"], one["code"]) for one in kept] == [
        ("holds", ""),
        ("holds", ""),
        ("still fails", "clone.bootcount"),
        ("still fails", "device.suspended"),
    ]
    assert kept[0]["about"]["asked"].startswith("127.0.0.1:")
    run("enroll", "release", device[:12], *WHO)
    nonce = Path("saved.bin.nonce").read_text().strip()
    assert nonce == after[1]["nonce"]
    assert out("verify", "saved.bin", "--nonce", nonce)["accepted"]


def test_ask_says_what_is_wrong(home: Path) -> None:
    assert "Unreachable" in run("ask", "127.0.0.1:1", code=Exit.UNREACHABLE).stderr
    assert "Unreachable" in run("ask", "/dev/null", code=Exit.UNREACHABLE).stderr
    for wrong in ("ftp://x:1", "https://", "https://x:1/a", "x:port", "x:0", ":80", "a/b"):
        run("ask", wrong, code=Exit.USAGE)


REPORT = {
    "reference": "example/app@sha256:" + "0" * 64,
    "digest": "sha256:" + "0" * 64,
    "chips": [
        {
            "chip": chip,
            "config": {
                "schemaVersion": 1,
                "app": {"projectName": "porch", "version": "2.0", "secureVersion": version},
                "measurements": [{"scheme": "esp-image", "alg": -44, "value": Minted().measurement.value.hex()}],
                "partitionTableSha256": Minted().partition_table.hex(),
            },
        }
        for chip, version in (("esp32c3", 3), ("esp32s3", 2))
    ],
}


def test_a_policy_from_an_artifact_accepts_the_device_that_runs_it(home: Path) -> None:
    phone = Minted(nonce=bytes.fromhex(NONCE))
    base = policy(phone)
    boot, authority = base.bootloader.measurements[0].measurement.full, base.authority_hashes[0]
    Path("ci.pub").write_text(keys.to_pem(private_key(Alg.ES256, b"ci").public_key()))
    words = ("policy", "generate", "-", "--bootloader", boot, "--authority", authority, "--signer", "ci=ci.pub")
    made = run(*words, stdin=json.dumps(REPORT).encode())
    assert made.stderr == ""
    Path("data/flashjob/trust/policies/demo.yaml").write_text(made.stdout)
    found = read_policy(Path("data/flashjob/trust/policies/demo.yaml"))
    assert (found.application.names, found.application.min_security_version) == (("porch",), 2)
    assert found.required_signers is not None
    Path("ev.bin").write_bytes(phone.evidence())
    TrustDirectory(Path("data/flashjob/trust")).enroll(spec(phone, policyRef={"name": "demo"}))
    assert out("verify", "ev.bin", "--nonce", NONCE)["provenAtTier"]
    other = Minted(nonce=bytes.fromhex(NONCE), partition_table=bytes(32))
    Path("ev.bin").write_bytes(other.evidence())
    assert out("verify", "ev.bin", "--nonce", NONCE, code=Exit.REJECTED)["code"] == "ref.partitions"
    whole = out(*words, "--kind", "AttestationPolicy", "--name", "porch", stdin=json.dumps(REPORT).encode())
    assert (whole["kind"], whole["metadata"]) == ("AttestationPolicy", {"name": "porch"})
    assert run("policy", "hash", "-", stdin=json.dumps(whole).encode()).stdout.strip() == policy_hash(found).hex()
    one = out("policy", "generate", "-", "--chip", "esp32c3", stdin=json.dumps(REPORT).encode())
    assert one["application"]["minSecurityVersion"] == 3
    more = json.loads(json.dumps(REPORT).replace("porch", "door"))
    Path("base.yaml").write_text(made.stdout)
    grown = out("policy", "generate", "-", "--base", "base.yaml", stdin=json.dumps(more).encode())
    assert grown["application"]["names"] == ["porch", "door"]
    assert grown["bootloader"] == json.loads(json.dumps(yaml.safe_load(made.stdout)["bootloader"]))


def test_policies_are_shown_checked_and_compared(home: Path) -> None:
    Path("weak.yaml").write_text("minRootOfTrust: SelfReported\n")
    Path("other.yaml").write_text("modes: [Normal, Debug]\n")
    assert any("finds accidents" in note for note in out("policy", "check", "weak.yaml")["notes"])
    assert out("policy", "show", "weak.yaml")["modes"] == ["Normal"]
    assert out("policy", "diff", "weak.yaml", "weak.yaml") == []
    fields = {one["field"] for one in out("policy", "diff", "weak.yaml", "other.yaml", code=Exit.REJECTED)}
    assert fields == {"minRootOfTrust", 'modes["Debug"]'}
    assert "minRootOfTrust" in run("policy", "diff", "weak.yaml", "other.yaml", code=Exit.REJECTED).stdout
    for text in ("", "a: [", "unknown: 1"):
        Path("bad.yaml").write_text(text)
        assert "policy.invalid" in run("policy", "check", "bad.yaml", code=Exit.TRUST).stderr
    run("policy", "check", "nowhere.yaml", code=Exit.USAGE)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", json.dumps(REPORT).replace("-44", '"-44"'), json.dumps({**REPORT, "chips": []})]
)
def test_a_report_that_is_none(home: Path, text: str) -> None:
    stderr = run("policy", "generate", "-", stdin=text.encode(), code=Exit.TRUST).stderr
    assert "firmware-pipeline inspect --json" in stderr


def test_the_bootloader_of_an_artifact_is_accepted_when_that_is_asked_for(home: Path) -> None:
    """Rule 4."""
    own = {"scheme": "esp-image", "alg": -44, "value": "b0" * 64}
    images = [{"role": "app", "measurements": []}, {"role": "bootloader", "measurements": [own]}]
    report = json.loads(json.dumps(REPORT))
    report["chips"][0]["images"] = images
    words = ("policy", "generate", "-", "--chip", "esp32c3")
    assert "bootloader" not in out(*words, stdin=json.dumps(report).encode())
    assert out(*words, "--with-bootloader", stdin=json.dumps(report).encode())["bootloader"]["measurements"] == [
        {"alg": -44, "value": "b0" * 64}
    ]
    lacking = run("policy", "generate", "-", "--with-bootloader", stdin=json.dumps(report).encode(), code=Exit.TRUST)
    assert "no bootloader for esp32s3" in lacking.stderr


def test_a_policy_to_start_from_is_never_loosened(home: Path) -> None:
    """Rules 3 and 6: neither its lowest security version nor its partition tables."""
    report = json.dumps(REPORT)
    bare: Any = json.loads(report)
    del bare["chips"][1]["config"]["partitionTableSha256"]
    Path("base.yaml").write_text("application: {minSecurityVersion: 3}\n")
    words = ("policy", "generate", "-")
    older = run(*words, "--base", "base.yaml", stdin=report.encode(), code=Exit.TRUST)
    assert "security version 2, the policy to start from demands 3" in older.stderr
    same = out(*words, "--base", "base.yaml", "--chip", "esp32c3", stdin=report.encode())
    assert same["application"]["minSecurityVersion"] == 3
    Path("base.yaml").write_text(f"partitionTables: ['{'ab' * 32}']\n")
    for base in (["--base", "base.yaml"], []):
        opened = run(*words, *base, stdin=json.dumps(bare).encode(), code=Exit.TRUST)
        assert "no partition table for esp32s3" in opened.stderr
    assert "partitionTables" not in out(*words, "--any-partition-table", stdin=json.dumps(bare).encode())
    kept = out(*words, "--base", "base.yaml", stdin=report.encode())["partitionTables"]
    assert kept == ["ab" * 32, Minted().partition_table.hex()]
    assert "partitionTables" not in out(*words, "--chip", "esp32s3", stdin=json.dumps(bare).encode())


def test_generate_refuses_what_it_cannot_do(home: Path) -> None:
    report = json.dumps(REPORT).encode()
    unknown = run("policy", "generate", "-", "--chip", "esp32", stdin=report, code=Exit.TRUST)
    assert "it has: esp32c3, esp32s3" in unknown.stderr
    for wrong in (["--kind", "Device"], ["--signer", "x"], ["--signer", "x=nowhere"], ["--bootloader", "sha256:00"]):
        run("policy", "generate", "-", *wrong, stdin=report, code=Exit.USAGE)


def test_reappraise_names_the_devices_that_would_fail(home: Path) -> None:
    key = private_key(Alg.ES256, b"records")
    Path("evidence.pub").write_text(keys.to_pem(key.public_key()))
    store = EvidenceStore(Path("records"), create=True)
    for phone in (Minted(seed=b"one"), Minted(seed=b"two", secure_version=9)):
        told, data = context(phone), phone.evidence()
        payload = evidence.record(data, told, verify(data, told), verifier="t", about={"task": "t"})
        assert payload is not None
        store.add(payload, key)
    rules = policy(Minted())
    trust = TrustDirectory(Path("data/flashjob/trust"))
    write_policy(trust, rules, "same")
    higher = rules.application.model_copy(update={"min_security_version": 4})
    write_policy(trust, rules.model_copy(update={"application": higher}), "new")
    again = ("reappraise", "records", "--key", "evidence.pub", "--policy")
    folder = "data/flashjob/trust/policies/"
    assert out(*again, f"{folder}same.yaml")["counts"]["holds"] == 2
    found = out(*again, f"{folder}new.yaml", code=Exit.REJECTED)
    assert {one["device"]: one["code"] for one in found["devices"]} == {
        Minted(seed=b"one").ueid.hex(): "rollback",
        Minted(seed=b"two").ueid.hex(): "",
    }
    shown = run(*again, f"{folder}new.yaml", code=Exit.REJECTED).stdout.splitlines()
    one = Minted(seed=b"one").ueid.hex()[:16]
    assert shown[0].startswith(f"fails        {one}  "), "what matters first"
    assert "  porch 2.0.0  rollback: " in shown[0]
    assert shown[-1] == "of 2: 1 would fail, 1 would hold"
    two = Minted(seed=b"two").ueid.hex()
    assert out(*again, f"{folder}new.yaml", "--device", two[:20])["counts"]["holds"] == 1
    run(*again, f"{folder}new.yaml", "--device", "ffff", code=Exit.USAGE)
    run("reappraise", "records", "--policy", f"{folder}new.yaml", code=Exit.USAGE)
    run("reappraise", "nowhere", "--key", "evidence.pub", "--policy", f"{folder}new.yaml", code=Exit.TRUST)
    wrong = Path("other.pub")
    wrong.write_text(keys.to_pem(private_key(Alg.ES256, b"other").public_key()))
    unread = out("reappraise", "records", "--key", "other.pub", "--policy", f"{folder}same.yaml", code=Exit.TRUST)
    assert {one["code"] for one in unread["devices"]} == {"record.signature"}


def test_reappraise_notices_what_was_changed_also_in_what_it_does_not_judge(home: Path) -> None:
    minted()
    key, phone = private_key(Alg.ES256, b"records"), Minted()
    Path("evidence.pub").write_text(keys.to_pem(key.public_key()))
    store, told, data = EvidenceStore(Path("records"), create=True), context(phone), phone.evidence()
    for at in (NOW, NOW + 1):
        later = replace(told, now=at)
        payload = evidence.record(data, later, verify(data, later), verifier="t", about={})
        assert payload is not None
        store.add(payload, key)
    write_policy(TrustDirectory(Path("data/flashjob/trust")), policy(phone), "same")
    again = ("reappraise", "records", "--key", "evidence.pub", "--policy", "data/flashjob/trust/policies/same.yaml")
    assert out(*again)["counts"]["holds"] == 1
    older, newer = store.lines()
    path = store.root / "records" / f"{older.record}.json"
    good = path.read_bytes()
    path.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    found = out(*again, code=Exit.TRUST)
    assert [(one["record"], one["code"]) for one in found["devices"] if one["outcome"] == "unreadable"] == [
        (older.record, "record.hash")
    ]
    shown = run(*again, code=Exit.TRUST).stdout
    assert "of 2: 1 cannot be read, 1 would hold" in shown
    path.write_bytes(good)
    (store.root / "records" / f"{newer.record}.json").unlink()
    assert out(*again, code=Exit.TRUST)["devices"][0]["code"] == "record.hash"
    index = store.root / "index.jsonl"
    index.write_bytes(index.read_bytes().replace(b'"at"', b'"bt"', 1))
    assert "record.structure" in run(*again, code=Exit.TRUST).stderr


NOT_EVIDENCE = {
    "JSON": b'{"a": 1}',
    "PEM": b"-----BEGIN CERTIFICATE-----\n",
    "hex": b"84015422\n",
    "base64": b"hAFUaVb8k8yUUklreydHa2TTS_QvjF6CWQH5\n",
    "DER": bytes.fromhex("30820100"),
    "empty": b"",
    "something else": b"a" * 4000 + b"\x00",
}


@pytest.mark.parametrize("kind", NOT_EVIDENCE)
def test_a_file_that_is_no_evidence_is_told_what_it_is(home: Path, kind: str) -> None:
    for words in (("explain", "-"), ("verify", "-", "--nonce", NONCE)):
        said = run(*words, stdin=NOT_EVIDENCE[kind], code=Exit.REJECTED)
        assert f"this is {kind}" in said.stderr.splitlines()[0]
        assert "[1, anchor id, [certificates], EAT]" in said.stderr


def test_explain_shows_what_it_can_read_and_why_not_the_rest(home: Path) -> None:
    phone, leaf = Minted(), private_key(Alg.ES256, b"attestation key")
    Path("odd.bin").write_bytes(phone.evidence(token=phone.token({265: "tag:other"})))
    odd = out("explain", "odd.bin", code=Exit.REJECTED)
    assert odd["token"]["unreadable"].startswith("eat.profile: ")
    assert odd["layer 1"]["name"] == "porch"
    assert "eat.profile" in run("explain", "odd.bin", code=Exit.REJECTED).stdout
    chain = [*phone.x509_chain(), mint.x509_leaf(phone.key("app"), leaf.public_key())]
    Path("three.bin").write_bytes(phone.evidence(chain, phone.token(key=leaf)))
    three = out("explain", "three.bin")
    assert three["attestation key 2"]["subject"] == keys.dice_id(leaf.public_key()).hex()
    Path("old.bin").write_bytes(compressed(phone))
    assert out("explain", "old.bin")["layer 0"]["id form"] == "Compressed"
    Path("escape.bin").write_bytes(phone.evidence(token=phone.token({259: b"\x1b[2J"})))
    assert out("explain", "escape.bin")["token"]["model"] == "\\x1b[2J"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (["--batch", " "], "enrol.proof: device 1: a proof is for one batch"),
        (["--batch", "b" * 600], "enrol.proof: device 1: the proof of possession does not hold: size"),
        (["--batch", "b", "--hwmodel", "x" * 33], "enrol.list: device 1: hwmodel has 1 to 32 bytes"),
        (["--batch", "b", "--oemid", "00"], "enrol.list: device 1: oemid has 3 or 16 bytes, not 1"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "cbor"])
def test_mint_makes_no_list_that_nobody_would_enroll(home: Path, form: str, wrong: list[str], code: str) -> None:
    run("mint", "key", "--out", "uds.pem")
    made = run("mint", "proof", "--key", "uds.pem", "--form", form, *wrong, code=Exit.REJECTED)
    assert code in made.stderr
    assert made.stdout == ""


def test_mint_refuses_what_would_harm(home: Path) -> None:
    run("mint", "key", "--out", "uds.pem", "--uds", "00" * 31 + "01")
    assert Path("uds.pem").stat().st_mode & 0o777 == 0o600
    run("mint", "key", "--out", "uds.pem", code=Exit.USAGE)
    run("mint", "key", "--out", "x.pem", "--uds", "00", code=Exit.USAGE)
    run("mint", "evidence", "--key", "nowhere.pem", "--nonce", NONCE, code=Exit.USAGE)
    for wrong in (
        ["--nonce", "00" * 7],
        ["--nonce", NONCE, "--name", ""],
        ["--nonce", NONCE, "--out", "nowhere/e.bin"],
    ):
        run("mint", "evidence", "--key", "uds.pem", *wrong, code=Exit.USAGE)
    mixed = ("--code", "sha256:" + "00" * 32, "--authority", "00" * 64)
    run("mint", "evidence", "--key", "uds.pem", "--nonce", NONCE, *mixed, code=Exit.USAGE)
    piped = run("mint", "evidence", "--key", "uds.pem", "--nonce", NONCE).stdout_bytes
    assert out("explain", "-", stdin=piped)["token"]["nonce"] == NONCE
    minted(key="uds.pem")
    run("enroll", "factory-list", "-", "--batch", "b", *ENROLL, stdin=b"x", code=Exit.REJECTED)


def test_binary_does_not_go_to_a_terminal(home: Path) -> None:
    run("mint", "key", "--out", "uds.pem")
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "attestation.cli", "mint", "evidence", "--key", "uds.pem", "--nonce", NONCE]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, b"redirect" in done.stderr) == (Exit.USAGE, True)


def attest(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "attestation.cli", *words]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


def test_the_program_itself(home: Path) -> None:
    nothing = attest("enroll", "list", "--trust", "nowhere")
    assert (nothing.returncode, b"Traceback" in nothing.stderr) == (Exit.TRUST, False)
    assert b"nowhere" in nothing.stderr
    assert nothing.stdout == b""
    assert attest("verify", "nowhere.bin", "--nonce", NONCE).returncode == Exit.USAGE
    assert attest("verify", "-", "--nonce", NONCE, input=b"").returncode == Exit.REJECTED
    assert attest("frobnicate").returncode == Exit.USAGE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_no_traceback(home: Path, number: int, code: int) -> None:
    command = [sys.executable, "-m", "attestation.cli", "policy", "show", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        while Path(f"/proc/{process.pid}/wchan").exists() and not _reads_stdin(process.pid):
            os.sched_yield()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert b"Traceback" not in stderr


def _reads_stdin(pid: int) -> bool:
    """Whether the process is in read(0, ...)."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith("0 0x0 ")


def test_now_is_unix_seconds() -> None:
    assert now() > 1_700_000_000
