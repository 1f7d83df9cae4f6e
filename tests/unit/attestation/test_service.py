# SPDX-License-Identifier: Apache-2.0
"""The service's answers, by the rules of service/app.py, judge.py, trust.py and audit.py: a real server, a real client."""

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from attestation import eat, evidence, nonce
from attestation.ear import Entry, Status
from attestation.evidence_store import EvidenceStore
from attestation.keys import Alg
from attestation.reappraisal import reappraise
from attestation.service.app import EVIDENCE_TYPE
from attestation.service.audit import AuditLog
from attestation.service.judge import Records
from attestation.standing import Standing, Verb
from tests.unit.attestation.serving import AUDIENCE, Device, Files, Running, running
from tests.unit.attestation.test_verifier_directory import spec
from tests.unit.attestation.world import Minted, private_key, rejects

DEVICE = Device()
OTHER = Device(Minted(seed=b"device two"))
DEAR = Device(Minted(seed=b"device three", alg=Alg.ES384))
ZEROS = "00" * 32


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, [DEVICE, OTHER, DEAR])


@pytest.fixture
async def service(files: Files) -> AsyncIterator[Running]:
    async with running(files) as found:
        yield found


@pytest.mark.parametrize("device", [DEVICE, OTHER, DEAR], ids=["one", "two", "ES384"])
async def test_an_honest_device_gets_an_affirming_result(service: Running, device: Device) -> None:
    nonce = await service.nonce(device.ueid)
    result = await service.result(device.answer(nonce), device.ueid, nonce)
    assert (result.status, result.reason, result.ueid.hex()) == (Status.AFFIRMING, "accepted", device.ueid)
    assert result.verifier.build == "test"
    assert result.policy_hash
    assert result.policy_id.startswith("default#")


async def bad_evidence(service: Running, files: Files, case: str) -> tuple[bytes, str, str]:
    """Evidence, the nonce that is named, and the device that is named."""
    nonce = await service.nonce(DEVICE.ueid)
    match case:
        case "empty":
            return b"", nonce, DEVICE.ueid
        case "garbage":
            return b"\xff" * 4096, nonce, DEVICE.ueid
        case "another device's":
            return OTHER.answer(nonce), nonce, DEVICE.ueid
        case "another nonce of ours":
            return DEVICE.answer(await service.nonce(DEVICE.ueid)), nonce, DEVICE.ueid
        case "another purpose":
            theirs = await service.nonce(DEVICE.ueid, "task/2/after")
            return DEVICE.answer(theirs), theirs, DEVICE.ueid
        case "another device's nonce":
            theirs = await service.nonce(OTHER.ueid)
            return DEVICE.answer(theirs), theirs, DEVICE.ueid
        case "a nonce of nobody's":
            return DEVICE.answer(ZEROS), ZEROS, DEVICE.ueid
        case "an expired nonce":
            ring = service.service.state.keys.ring
            then = int(time.time()) - 121
            old = _issue(ring, then)
            return DEVICE.answer(old), old, DEVICE.ueid
        case "unknown":
            return DEVICE.answer(nonce), nonce, "01" * 33
        case "rolled back":
            return Device(Minted(secure_version=1)).answer(nonce), nonce, DEVICE.ueid
        case "another application":
            return Device(Minted(code="app 9.9")).answer(nonce), nonce, DEVICE.ueid
        case "a flipped bit":
            whole = bytearray(DEVICE.answer(nonce))
            whole[-1] ^= 1
            return bytes(whole), nonce, DEVICE.ueid
        case "suspended":
            files.trust.change_standing(DEVICE.minted.ueid, Verb.SUSPEND, by="ann", reason="stolen", at=1)
            return DEVICE.answer(nonce), nonce, DEVICE.ueid
        case "revoked":
            files.trust.change_standing(DEVICE.minted.ueid, Verb.REVOKE, by="ann", reason="stolen", at=1)
            return DEVICE.answer(nonce), nonce, DEVICE.ueid
    (files.trust.root / "policies/default.yaml").unlink()
    return DEVICE.answer(nonce), nonce, DEVICE.ueid


def _issue(ring: nonce.KeyRing, now: int) -> str:
    ueid = DEVICE.minted.ueid
    return nonce.issue(ring, ueid, AUDIENCE.encode(), now=now, ttl=120, random=bytes(10)).hex()


FAILED = dict.fromkeys(Entry, 99)


@pytest.mark.parametrize(
    ("case", "reason", "vector"),
    [
        ("empty", "size", FAILED),
        ("garbage", "cbor.indefinite", FAILED),
        ("another device's", "anchor.id", {Entry.INSTANCE_IDENTITY: 97}),
        ("another nonce of ours", "eat.nonce", FAILED),
        ("another purpose", "nonce.mac", FAILED),
        ("another device's nonce", "nonce.mac", FAILED),
        ("a nonce of nobody's", "nonce.structure", FAILED),
        ("an expired nonce", "nonce.expired", FAILED),
        ("unknown", "device.unknown", {Entry.INSTANCE_IDENTITY: 97}),
        ("rolled back", "rollback", {Entry.CONFIGURATION: 96}),
        ("another application", "ref.code", {Entry.EXECUTABLES: 33}),
        ("a flipped bit", "sig.invalid", FAILED),
        ("suspended", "device.suspended", {Entry.INSTANCE_IDENTITY: 96}),
        ("revoked", "device.revoked", {Entry.INSTANCE_IDENTITY: 96}),
        ("policy taken away", "policy.missing", {}),
    ],
)
async def test_1_what_evidence_is_worth_is_a_result(
    service: Running, files: Files, case: str, reason: str, vector: dict[Entry, int]
) -> None:
    data, nonce, ueid = await bad_evidence(service, files, case)
    result = await service.result(data, ueid, nonce)
    assert (result.reason, dict(result.vector)) == (reason, vector)
    assert result.status is Status.CONTRAINDICATED
    assert result.ueid.hex() == ueid


GOOD = {"ueid": DEVICE.ueid, "audience": AUDIENCE, "nonce": ZEROS}
NONCE_BODY = json.dumps({"ueid": DEVICE.ueid, "audience": AUDIENCE}).encode()
JSON = "application/json"


@pytest.mark.parametrize(
    ("path", "body", "media", "query", "status", "code"),
    [
        ("/v1/verify", b"x", EVIDENCE_TYPE, {}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "more": "1"}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "ueid": "01"}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "ueid": DEVICE.ueid.upper()}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "ueid": "../../etc/passwd"}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "audience": ""}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "audience": "a\nb"}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "audience": "a\n"}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "audience": "a" * 257}, 400, "request.malformed"),
        ("/v1/verify", b"x", EVIDENCE_TYPE, {**GOOD, "nonce": ZEROS + "00"}, 400, "request.malformed"),
        ("/v1/verify?nonce=" + ZEROS, b"x", EVIDENCE_TYPE, GOOD, 400, "request.malformed"),
        ("/v1/verify", b"x", "application/cbor", GOOD, 415, "request.media"),
        ("/v1/verify", b"x", JSON, GOOD, 415, "request.media"),
        ("/v1/verify", b"x" * 4097, EVIDENCE_TYPE, GOOD, 413, "request.size"),
        ("/v1/verify", b"x" * 9_000_000, EVIDENCE_TYPE, GOOD, 413, "request.size"),
        ("/v1/nonce", b"", JSON, {}, 400, "request.malformed"),
        ("/v1/nonce", b"[]", JSON, {}, 400, "request.malformed"),
        ("/v1/nonce", b"[" * 4000, JSON, {}, 400, "request.malformed"),
        ("/v1/nonce", b'{"ueid": 1, "audience": "a"}', JSON, {}, 400, "request.malformed"),
        ("/v1/nonce", NONCE_BODY[:-1] + b', "ttl": 600}', JSON, {}, 400, "request.malformed"),
        ("/v1/nonce", b"\xff\xfe", JSON, {}, 400, "request.malformed"),
        ("/v1/nonce", NONCE_BODY, "text/plain", {}, 415, "request.media"),
        ("/v1/nonce", b" " * 4097, JSON, {}, 413, "request.size"),
        ("/v1/nonce", NONCE_BODY.replace(DEVICE.ueid.encode(), b"01" * 33), JSON, {}, 404, "device.unknown"),
        ("/v1/keys", b"", JSON, {}, 405, "request.method"),
        ("/v2/verify", b"", JSON, {}, 404, "request.path"),
        ("/", b"", JSON, {}, 404, "request.path"),
    ],
)
async def test_1_2_3_every_bad_request_has_its_status_and_code(
    service: Running, path: str, body: bytes, media: str, query: dict[str, str], status: int, code: str
) -> None:
    reply = await service.post(path, body, media, **query)
    assert (reply.status, reply.code) == (status, code), reply.body
    assert await service.reason(DEVICE) == "accepted"


async def test_2_compressed_bodies_are_refused_and_a_stream_is_cut_off(service: Running) -> None:
    url, headers = f"{service.url}/v1/nonce", {"Content-Type": JSON, "Content-Encoding": "gzip"}
    async with service.http.post(url, data=NONCE_BODY, headers=headers) as response:
        assert (response.status, (await response.json(content_type=None))["code"]) == (415, "request.media")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 1024

    async with service.http.post(url, data=endless(), headers={"Content-Type": JSON}) as response:
        assert (response.status, (await response.json(content_type=None))["code"]) == (413, "request.size")


async def test_the_method_that_is_allowed_is_named(service: Running) -> None:
    reply = await service.get("/v1/verify")
    assert (reply.status, reply.code, reply.headers["Allow"]) == (405, "request.method", "POST")


async def test_a_nonce_is_good_once(service: Running) -> None:
    nonce = await service.nonce(DEVICE.ueid)
    reasons = [(await service.result(DEVICE.answer(nonce), DEVICE.ueid, nonce)).reason for _ in range(3)]
    assert reasons == ["accepted", "replay", "replay"]


async def test_a_rejected_answer_leaves_the_nonce_for_the_device(service: Running) -> None:
    nonce = await service.nonce(DEVICE.ueid)
    spoilt = Device(Minted(code="app 9.9")).answer(nonce)
    assert (await service.result(spoilt, DEVICE.ueid, nonce)).reason == "ref.code"
    assert (await service.result(DEVICE.answer(nonce), DEVICE.ueid, nonce)).reason == "accepted"


async def test_below_the_demanded_root_of_trust_is_a_warning(service: Running, files: Files) -> None:
    weak = Device(Minted(seed=b"device four"))
    files.trust.enroll(spec(weak.minted, rootOfTrust="SelfReported"))
    nonce = await service.nonce(weak.ueid)
    result = await service.result(weak.answer(nonce), weak.ueid, nonce)
    assert (result.status, result.reason) == (Status.WARNING, "accepted")
    assert any("root of trust" in text for text in result.unproven)


@pytest.mark.parametrize(
    ("changes", "alarm"), [({eat.BOOTCOUNT: 11}, "clone.bootcount"), ({eat.BOOTSEED: bytes(16)}, "clone.seed")]
)
async def test_3_a_second_device_with_one_identity_suspends_it(
    service: Running, files: Files, changes: dict[int, Any], alarm: str
) -> None:
    assert await service.reason(DEVICE) == "accepted"
    before = files.trust.device_path(DEVICE.minted.ueid).stat()
    assert await service.reason(DEVICE) == "accepted"
    after = files.trust.device_path(DEVICE.minted.ueid).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns), "a boot seen again was written"
    assert await service.reason(DEVICE, changes) == alarm
    assert await service.reason(DEVICE) == "device.suspended"
    last = files.trust.history(DEVICE.minted.ueid)[-1]
    assert (last.standing, last.by) == (Standing.SUSPENDED, "attest serve")


async def test_4_a_nonce_from_before_the_start_is_refused_where_memory_forgot(files: Files) -> None:
    async with running(files) as first:
        nonce = await first.nonce(DEVICE.ueid)
    async with running(files, began=int(time.time()) + 1) as second:
        reply = await second.verify(DEVICE.answer(nonce), DEVICE.ueid, nonce)
        assert (reply.status, reply.code) == (503, "store.unavailable")
        assert b"ask for a new one" in reply.body


SPOILT: dict[str, Callable[[Path], object]] = {
    "gone": lambda root: root.rename(root.with_name("elsewhere")),
    "no devices": lambda root: (root / "devices").rename(root / "other"),
    "no policies": lambda root: (root / "policies").rename(root / "other"),
    "a file in their place": lambda root: (
        (root / "policies").rename(root / "other").with_name("policies").write_text("")
    ),
    "a broken policy": lambda root: (root / "policies/default.yaml").write_text("[]"),
    "a broken device": lambda root: (root / f"devices/{DEVICE.ueid}.json").write_text("{}"),
}


@pytest.mark.parametrize("case", SPOILT)
async def test_5_a_store_that_cannot_tell_gives_no_result(service: Running, files: Files, case: str) -> None:
    assert await service.reason(DEVICE) == "accepted"
    nonce = await service.nonce(DEVICE.ueid)
    SPOILT[case](files.trust.root)
    reply = await service.verify(DEVICE.answer(nonce), DEVICE.ueid, nonce)
    assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "store.unavailable", "1")
    ready = await service.get("/readyz")
    assert ready.status == (200 if case.startswith("a broken") else 503), ready.body
    assert (await service.get("/healthz")).status == 200


async def test_what_a_person_changes_counts_at_once(service: Running, files: Files) -> None:
    assert await service.reason(DEVICE) == "accepted"
    ueid = DEVICE.minted.ueid
    files.trust.change_standing(ueid, Verb.SUSPEND, by="ann", reason="lost", at=1)
    assert await service.reason(DEVICE) == "device.suspended"
    files.trust.change_standing(ueid, Verb.RELEASE, by="ann", reason="found", at=2)
    assert await service.reason(DEVICE) == "accepted"
    policy = files.trust.root / "policies/default.yaml"
    policy.write_text(policy.read_text().replace("minSecurityVersion: 2", "minSecurityVersion: 4"))
    assert await service.reason(DEVICE) == "rollback"
    policy.unlink()
    async with running(files) as fresh:
        reply = await fresh.post("/v1/nonce", NONCE_BODY, JSON)
        assert (reply.status, reply.code) == (409, "policy.missing")


async def test_6_every_result_leaves_its_line_and_its_record(files: Files, tmp_path: Path) -> None:
    log, key = tmp_path / "audit.jsonl", private_key(Alg.ES256, b"evidence")
    store = EvidenceStore(tmp_path / "evidence", create=True)
    async with running(files, audit=AuditLog(log), records=Records(store, key)) as service:
        assert await service.reason(DEVICE) == "accepted"
        assert await service.reason(DEVICE, {eat.SWNAME: "attic"}) == "eat.name"
        nonce = await service.nonce(DEVICE.ueid)
        await service.result(b"x", DEVICE.ueid, nonce)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["code"] for line in lines] == ["accepted", "eat.name", "cbor.eof"]
    assert [line["status"] for line in lines] == ["affirming", "contraindicated", "contraindicated"]
    assert lines[0]["ueid"] == DEVICE.ueid
    assert lines[0]["application"] == "porch"
    assert lines[2]["nonce"] == nonce
    assert {frozenset(line) for line in lines} == {frozenset(lines[0])}
    records = [evidence.read(store.envelope(line.record), [key.public_key()]) for line in store.lines()]
    assert [record.verdict.code for record in records] == [None, "eat.name"]
    assert records[0].about == {"audience": AUDIENCE}
    secrets = [files.ear_key.read_text().splitlines()[1], (files.nonce_keys / "1").read_bytes().hex()]
    assert not any(secret in log.read_text() for secret in secrets)


async def test_6_a_replay_and_a_twin_leave_records_that_can_be_judged_again(files: Files, tmp_path: Path) -> None:
    key, store = private_key(Alg.ES256, b"evidence"), EvidenceStore(tmp_path / "evidence", create=True)
    async with running(files, records=Records(store, key)) as service:
        nonce = await service.nonce(DEVICE.ueid)
        for said in ("accepted", "replay"):
            assert (await service.result(DEVICE.answer(nonce), DEVICE.ueid, nonce)).reason == said
        assert await service.reason(DEVICE, {eat.BOOTSEED: bytes(16)}) == "clone.seed"
    rules = files.trust.policy("default")
    assert rules is not None
    found = [reappraise(store.envelope(line.record), [key.public_key()], rules) for line in store.lines()]
    assert [(one.outcome.value, one.code) for one in found] == [("holds", ""), ("still fails", "clone.seed")]


async def test_6_no_result_without_its_record(files: Files, tmp_path: Path) -> None:
    async with running(files, audit=AuditLog(Path("/dev/full"))) as service:
        nonce = await service.nonce(DEVICE.ueid)
        reply = await service.verify(DEVICE.answer(nonce), DEVICE.ueid, nonce)
        assert (reply.status, reply.code) == (503, "records.unavailable")
    store = EvidenceStore(tmp_path / "evidence", create=True)
    async with running(files, records=Records(store, private_key(Alg.ES256, b"evidence"))) as service:
        store.root.rename(tmp_path / "elsewhere")
        nonce = await service.nonce(DEVICE.ueid)
        reply = await service.verify(DEVICE.answer(nonce), DEVICE.ueid, nonce)
        assert (reply.status, reply.code) == (503, "records.unavailable")


def test_audit_5_a_rotated_log_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write({"n": 1})
    path.rename(tmp_path / "audit.1")
    log.write({"n": 2})
    log.reopen()
    log.write({"n": 3})
    log.close()
    assert (tmp_path / "audit.1").read_text() == '{"n":1}\n{"n":2}\n'
    assert path.read_text() == '{"n":3}\n'
    assert path.stat().st_mode & 0o777 == 0o600
    rejects("store.unavailable", lambda: AuditLog(tmp_path / "nowhere/audit"))


async def test_metrics_count_by_result_and_never_by_device(service: Running) -> None:
    for _ in range(3):
        assert await service.reason(DEVICE) == "accepted"
    await service.reason(DEVICE, {eat.SWNAME: "attic"})
    await service.post("/v1/nonce", b"", JSON)
    await service.get("/nowhere")
    text = (await service.get("/metrics")).body.decode()
    for line in (
        'attestation_requests_total{code="accepted",path="/v1/verify"} 3.0',
        'attestation_requests_total{code="eat.name",path="/v1/verify"} 1.0',
        'attestation_requests_total{code="request.malformed",path="/v1/nonce"} 1.0',
        'attestation_requests_total{code="request.path",path="other"} 1.0',
        'attestation_request_seconds_count{path="/v1/verify"} 4.0',
        'attestation_chain_cache_total{result="hit"} 3.0',
        'attestation_chain_cache_total{result="miss"} 1.0',
        "attestation_connections 1.0",
        "attestation_requests_in_flight 1.0",
    ):
        assert line in text
    assert DEVICE.ueid not in text
