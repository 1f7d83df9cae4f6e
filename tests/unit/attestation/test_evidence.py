# SPDX-License-Identifier: Apache-2.0
"""Evidence records: everything in them is needed, and no bit of them can be changed unnoticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from attestation import dsse, evidence
from attestation.anchors import Floors
from attestation.eat import SlotState
from attestation.errors import Code, Reject
from attestation.evidence_store import EvidenceStore
from attestation.keys import Alg
from attestation.policy import DenyRules, RootOfTrust
from attestation.reappraisal import Outcome, reappraise
from attestation.replay import InMemorySingleUse
from attestation.verdict import Context
from attestation.verifier import verify, verify_once
from tests.unit.attestation.world import NOW, Minted, context, policy, private_key, ref, rejects

KEY = private_key(Alg.ES256, b"records")
PUBLIC = KEY.public_key()
PHONE = Minted()
ABOUT = {"task": "default/t", "artifact": "example/app@sha256:00"}


def payload(phone: Minted = PHONE, told: Context | None = None) -> bytes:
    data, used = phone.evidence(), told or context(phone)
    made = evidence.record(data, used, verify(data, used), verifier="test 1", about=ABOUT)
    assert made is not None
    return made


def sealed(phone: Minted = PHONE, told: Context | None = None) -> bytes:
    return evidence.seal(payload(phone, told), KEY)


def rich() -> Context:
    """A context in which every field says something."""
    return context(
        PHONE,
        floors=Floors(3, 4, 5),
        last_confirmed=frozenset({PHONE.measurement}),
        pinned=frozenset({PHONE.measurement}),
        expected=frozenset({PHONE.measurement}),
        boot_ids=frozenset({PHONE.boot_id}),
        slot_states=frozenset({SlotState.VALID}),
        data_images={"assets": frozenset({PHONE.measurement})},
        partition_table=PHONE.partition_table,
    )


def test_a_record_gives_back_what_the_verifier_was_told() -> None:
    told, record = rich(), evidence.read(sealed(told=rich()), [PUBLIC])
    again = record.as_judged()
    told_of = ("policy", "floors", "last_confirmed", "pinned", "expected", "boot_ids", "slot_states", "data_images")
    for field in (*told_of, "partition_table"):
        assert getattr(again, field) == getattr(told, field), field
    assert again.device is not None
    assert told.device is not None
    assert (again.device.ueid, again.device.tier, again.now) == (told.device.ueid, told.device.tier, NOW)
    assert verify(record.evidence, again).accepted
    assert dict(record.about) == ABOUT
    assert evidence.read(sealed(), [PUBLIC]).as_judged().data_images is None, "nobody said which images there must be"


def test_a_refused_partition_table_is_refused_again_whatever_the_new_policy_accepts() -> None:
    told = context(PHONE, expected=frozenset({PHONE.measurement}), partition_table=bytes(32))
    again = reappraise(sealed(told=told), [PUBLIC], policy(PHONE, partition_tables=(PHONE.partition_table.hex(),)))
    assert (again.outcome, again.code) == (Outcome.STILL_FAILS, "ref.partitions")


def test_a_record_of_a_build_that_knew_no_such_demand_is_judged_as_it_was() -> None:
    told = context(PHONE, expected=frozenset({PHONE.measurement}))
    content = json.loads(payload(told=told))
    del content["context"]["partitionTable"]
    older = evidence.seal(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), KEY)
    assert evidence.read(older, [PUBLIC]).as_judged().partition_table is None
    assert reappraise(older, [PUBLIC], policy(PHONE)).outcome is Outcome.HOLDS
    asked = policy(PHONE, partition_tables=(bytes(32).hex(),))
    assert reappraise(older, [PUBLIC], asked).code == "ref.partitions"


@pytest.mark.parametrize("alg", [Alg.ES256, Alg.ES384, Alg.EDDSA])
def test_every_key_algorithm_seals(alg: Alg) -> None:
    key = private_key(alg, b"seal")
    assert evidence.read(evidence.seal(payload(), key), [PUBLIC, key.public_key()]).id == PHONE.ueid.hex()


def test_what_has_nothing_to_judge_again_leaves_no_record() -> None:
    data = PHONE.evidence()
    for used in (context(PHONE, device=None), context(PHONE, policy=None), context(PHONE, nonce=bytes(32))):
        assert evidence.record(data, used, verify(data, used), verifier="t", about={}) is None


@pytest.mark.parametrize(
    "stride", [pytest.param(17, id="sampled"), pytest.param(1, marks=pytest.mark.slow, id="every")]
)
def test_one_flipped_bit_anywhere_is_detected(stride: int) -> None:
    """By the record alone, without the hash that it is stored under."""
    envelope = sealed()
    for bit in range(0, len(envelope) * 8, stride):
        spoilt = bytearray(envelope)
        spoilt[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(Reject) as caught:
            evidence.read(bytes(spoilt), [PUBLIC])
        assert caught.value.code in (Code.RECORD_STRUCTURE, Code.RECORD_SIGNATURE), bit


def test_dsse_rules() -> None:
    other = private_key(Alg.ES256, b"other")
    rejects("record.signature", lambda: evidence.read(sealed(), [other.public_key()]))
    rejects("record.signature", lambda: evidence.read(sealed(), []))
    rejects("record.structure", lambda: evidence.read(dsse.seal("text/plain", payload(), KEY), [PUBLIC]))
    content = json.loads(sealed())
    content["signatures"] *= 2
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    loose = json.dumps(json.loads(sealed())).encode()
    for bad in (b"", b"[]", b"{}", b"[" * 5000, canonical, loose, sealed() + b" ", bytes(dsse.LIMIT_BYTES + 1)):
        rejects("record.structure", lambda bad=bad: evidence.read(bad, [PUBLIC]))
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def changed(**changes: Any) -> bytes:
    content = {**json.loads(payload()), **changes}
    return evidence.seal(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), KEY)


def test_the_signer_cannot_contradict_himself() -> None:
    rejects("record.hash", lambda: evidence.read(changed(evidenceSha256="00" * 32), [PUBLIC]))
    rejects("record.hash", lambda: evidence.read(changed(policyHash="00" * 32), [PUBLIC]))
    rejects("record.structure", lambda: evidence.read(changed(more=1), [PUBLIC]))
    rejects("record.structure", lambda: evidence.read(changed(at="now"), [PUBLIC]))
    rejects("record.structure", lambda: evidence.read(evidence.seal(payload() + b" ", KEY), [PUBLIC]))
    rejects("record.structure", lambda: evidence.read(evidence.seal(b"[]", KEY), [PUBLIC]))
    device = {**json.loads(payload())["device"], "coseKey": "gA"}
    assert reappraise(changed(device=device), [PUBLIC], policy(PHONE)).code == "record.structure"


def test_rule_2_a_record_of_a_build_whose_policies_knew_fewer_fields_still_holds() -> None:
    older = {name: value for name, value in json.loads(payload())["policy"].items() if name != "idForm"}
    canonical = json.dumps(older, sort_keys=True, separators=(",", ":")).encode()
    record = changed(policy=older, policyHash=hashlib.sha256(canonical).hexdigest())
    assert reappraise(record, [PUBLIC], policy(PHONE)).outcome is Outcome.HOLDS
    rejects("record.hash", lambda: evidence.read(changed(policy=older), [PUBLIC]))


def test_reappraisal_says_who_would_fail() -> None:
    denied = policy(PHONE, deny=DenyRules(measurements=(ref(PHONE.measurement),)))
    stricter = policy(PHONE, min_root_of_trust=RootOfTrust.ISOLATED)
    assert reappraise(sealed(), [PUBLIC], policy(PHONE)).outcome is Outcome.HOLDS
    found = reappraise(sealed(), [PUBLIC], denied)
    assert (found.outcome, found.code) == (Outcome.FAILS, "ref.denied")
    assert reappraise(sealed(), [PUBLIC], stricter).outcome is Outcome.FAILS
    rejected = sealed(told=context(PHONE, policy=denied))
    assert reappraise(rejected, [PUBLIC], policy(PHONE)).outcome is Outcome.MENDS
    assert reappraise(rejected, [PUBLIC], denied).outcome is Outcome.STILL_FAILS


def test_reappraisal_may_count_the_policy_alone() -> None:
    nothing = policy(PHONE, application=policy(PHONE).application.model_copy(update={"measurements": ()}))
    record = sealed(told=context(PHONE, pinned=frozenset({PHONE.measurement})))
    assert reappraise(record, [PUBLIC], nothing).outcome is Outcome.HOLDS
    assert reappraise(record, [PUBLIC], nothing, policy_only=True).code == "ref.code"


def test_rule_2_a_record_that_this_verifier_would_not_have_made() -> None:
    verdict = {**json.loads(payload())["verdict"], "accepted": False, "code": "ref.code", "provenAtTier": False}
    found = reappraise(changed(verdict=verdict), [PUBLIC], policy(PHONE))
    assert (found.outcome, found.code) == (Outcome.UNREADABLE, "record.verdict")


def test_rule_2_a_verdict_that_earlier_boots_withheld_fails_under_every_policy() -> None:
    alarm = Reject(Code.CLONE_SEED, "two seeds in boot 3")
    data, told = PHONE.evidence(), context(PHONE)
    withheld = verify(data, told).refused("clones", alarm)
    made = evidence.record(data, told, withheld, verifier="t", about={})
    assert made is not None
    found = reappraise(evidence.seal(made, KEY), [PUBLIC], policy(PHONE))
    assert (found.outcome, found.code, found.message) == (Outcome.STILL_FAILS, "clone.seed", alarm.message)
    denied = policy(PHONE, deny=DenyRules(measurements=(ref(PHONE.measurement),)))
    found = reappraise(evidence.seal(made, KEY), [PUBLIC], denied)
    assert (found.outcome, found.code) == (Outcome.STILL_FAILS, "ref.denied")


def test_a_replay_decides_nothing_and_leaves_no_record() -> None:
    data, told, used = PHONE.evidence(), context(PHONE), InMemorySingleUse()
    assert verify_once(data, told, used).accepted
    assert evidence.record(data, told, verify_once(data, told, used), verifier="t", about={}) is None


# The directory


@pytest.fixture
def store(tmp_path: Path) -> EvidenceStore:
    made = EvidenceStore(tmp_path / "evidence", create=True)
    for number in range(3):
        made.add(payload(Minted(seed=b"device %d" % number)), KEY)
    return made


def test_records_are_found_by_their_hash(store: EvidenceStore) -> None:
    lines = list(store.lines())
    assert len({line.device for line in lines}) == 3
    for line in lines:
        record = evidence.read(store.envelope(line.record), [PUBLIC])
        assert (record.id, record.at, record.policy_hash.hex()) == (line.device, line.at, line.policy_hash)
    head = store.head()
    assert store.add(payload(Minted(seed=b"device 0")), KEY) == lines[0].record, "the same record is kept once"
    assert store.head() == head
    rejects("store.unavailable", lambda: EvidenceStore(store.root / "nowhere"))
    rejects("record.structure", lambda: store.envelope("../index"))


def test_the_index_is_a_chain(store: EvidenceStore) -> None:
    index = store.root / "index.jsonl"
    good = index.read_bytes()
    one, two, three = good.splitlines(keepends=True)
    for bad, code in (
        (two + three, "record.hash"),
        (one + three, "record.hash"),
        (one + three + two, "record.hash"),
        (one + two.replace(b'"accepted":true', b'"accepted":false') + three, "record.hash"),
        (one + b"{}\n" + two, "record.structure"),
        (one + two.replace(b":", b": ", 1), "record.structure"),
    ):
        index.write_bytes(bad)
        rejects(code, lambda: list(store.lines()))
    index.write_bytes(good[:-10])
    assert len(list(store.lines())) == 2, "half a last line is a crash, not a lie"
    store.add(payload(Minted(seed=b"device 9")), KEY)
    assert len(list(store.lines())) == 3, "and the next writer mends it"


def test_rule_1_a_record_without_a_line_gets_one_from_who_adds_it_again(store: EvidenceStore) -> None:
    index = store.root / "index.jsonl"
    index.write_bytes(index.read_bytes().rpartition(b'{"accepted"')[0])
    last = payload(Minted(seed=b"device 2"))
    assert store.add(last, KEY) in [line.record for line in store.lines()]
    assert len(list(store.lines())) == 3


def test_rule_2_and_3_one_flipped_bit_anywhere_in_the_index_is_detected(store: EvidenceStore) -> None:
    index = store.root / "index.jsonl"
    good = index.read_bytes()

    records = {line.record: evidence.read(store.envelope(line.record), [PUBLIC]) for line in store.lines()}

    def check() -> None:
        for line in store.lines():
            store.envelope(line.record)
            line.require(records[line.record])

    check()
    last = len(good.rpartition(b'{"accepted"')[0])
    assert last > len(good) / 2
    for bit in range(last * 8, len(good) * 8):  # nothing follows the last line that could tell
        spoilt = bytearray(good)
        spoilt[bit // 8] ^= 1 << (bit % 8)
        index.write_bytes(spoilt)
        with pytest.raises(Reject) as caught:
            check()
        assert caught.value.code in (Code.RECORD_STRUCTURE, Code.RECORD_HASH), bit
    index.write_bytes(good[:-1] + b"\x0b")
    rejects("record.structure", lambda: store.add(payload(Minted(seed=b"device 9")), KEY))
    assert index.read_bytes() == good[:-1] + b"\x0b", "a writer destroyed the sign of a change"


def test_a_record_that_was_changed_or_taken_away(store: EvidenceStore) -> None:
    line = next(store.lines())
    path = store.root / "records" / f"{line.record}.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    rejects("record.hash", lambda: store.envelope(line.record))
    path.unlink()
    rejects("record.hash", lambda: store.envelope(line.record))


def test_writers_take_turns(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    root = tmp_path / "evidence"
    EvidenceStore(root, create=True)
    records = [payload(Minted(seed=b"writer %d" % number)) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda one: EvidenceStore(root).add(one, KEY), records))
    assert sorted(line.record for line in EvidenceStore(root).lines()) == sorted(names)
