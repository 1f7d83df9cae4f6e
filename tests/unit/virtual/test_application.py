# SPDX-License-Identifier: Apache-2.0
"""The application's side of the device protocol: one update from grant to confirm, and every way to be refused."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import cose, grants
from attestation.cbor import dumps, strict_loads
from attestation.device_protocol import ErrorCode, Flag, Request
from attestation.eat import parse_evidence, read_token
from attestation.grants import CancelGrant, ConfirmGrant, PayloadFormat, RevertGrant, Verb
from attestation.statement import Digest
from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.esp.otadata import SlotState
from flashjob.virtual import delta
from flashjob.virtual.adversaries import (
    LosesConfirm,
    NeverComesBack,
    OtherDevicesEvidence,
    ReplaysEvidence,
    RollsBackAfterAccept,
    RollsBackBeforeConfirm,
)
from flashjob.virtual.application import State
from flashjob.virtual.flash import FlashIOError, Operation
from flashjob.virtual.profile import Owner, make_identity
from flashjob.virtual.replies import Refusal, Reply
from tests.unit.virtual.workbench import FOREIGN_KEY, GRANT_KEY, NONCE, RELEASE_KEY, Bench, code, image, key

NEW = image("2.0")
BENCH = Bench()


def token(evidence: bytes) -> Any:
    """The claims of an EAT, unverified."""
    claims = strict_loads(cose.parse(parse_evidence(evidence).token).payload)
    assert isinstance(claims, dict)
    return read_token(claims)


def installed(bench: Bench, data: bytes = NEW, **changes: Any) -> Bench:
    """A bench after installation and reset: PENDING."""
    reply = bench.install(data, **changes)
    assert (reply.status, reply.reboot) == (200, True)
    bench.reset()
    return bench


# --- the good way ------------------------------------------------------------------------------------------------


def test_install_reboot_confirm() -> None:
    bench = Bench()
    assert bench.send(bench.install_grant(NEW)).status == 200
    assert bench.info().active_grant == b"g" * 16
    reply = bench.upload(NEW)
    assert (reply.status, reply.reboot, bench.application.state) == (200, True, State.REBOOT)
    bench.reset()
    assert bench.application.state is State.PENDING
    info = bench.info()
    assert (info.version, info.slot_state, info.running_slot) == ("2.0", SlotState.PENDING_VERIFY, 0x11)
    assert info.confirm_seconds_left == 120
    first = token(bench.evidence())
    assert (first.slot_state, first.fence, first.nonce) == (SlotState.PENDING_VERIFY, 1, NONCE)
    answer = bench.send(bench.running_grant(ConfirmGrant))
    assert answer.status == 200
    assert answer.body is not None
    second = token(answer.body)
    assert (second.slot_state, second.nonce) == (SlotState.VALID, b"2" * 32)
    assert bench.info().confirm_seconds_left is None
    assert bench.nvs.sequence == 1
    assert bench.reset().boot.slot_state == SlotState.VALID
    assert bench.info().version == "2.0"


def test_sequence_and_fuses_change_at_confirm_only() -> None:
    identity = make_identity("fuses", "esp32s3", anti_rollback=True)
    bench = Bench(identity=identity)
    data = image("2.0", secure_version=2)
    installed(bench, data, statement=bench.release(data, sequence=7))
    assert (bench.nvs.sequence, identity.hardware.fuses.secure_version) == (0, 0)
    assert bench.send(bench.running_grant(ConfirmGrant)).status == 200
    assert (bench.nvs.sequence, identity.hardware.fuses.secure_version) == (7, 2)


def test_the_deadline_of_the_grant_ends_in_the_old_slot() -> None:
    bench = installed(Bench())
    bench.now += 119
    assert not bench.application.overdue()
    bench.now += 1
    assert bench.application.overdue()
    assert bench.application.roll_back()
    assert bench.reset().boot.version == "1.0"
    assert not bench.application.roll_back(), "nothing is left to roll back"
    assert not bench.application.overdue()


def test_a_reset_before_the_confirmation_ends_in_the_old_slot() -> None:
    bench = installed(Bench())
    bench.reset()
    assert (bench.info().version, bench.application.state) == ("1.0", State.IDLE)


def test_revert_goes_back_at_once() -> None:
    bench = installed(Bench())
    reply = bench.send(bench.running_grant(RevertGrant))
    assert (reply.status, reply.reboot) == (200, True)
    assert bench.reset().boot.version == "1.0"
    assert bench.nvs.sequence == 0


def test_cancel_forgets_the_upload_and_erases_the_slots_beginning() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW))
    upload = bench.application.open_upload(0, len(NEW))
    upload.write(NEW[:9000])
    assert bench.send(bench.running_grant(CancelGrant, grant_id=b"g" * 16)).status == 200
    assert bench.application.state is State.IDLE
    assert bench.flash.read(bench.slot(1).offset, 4096) == b"\xff" * 4096
    with pytest.raises(Refusal, match="another grant"):
        upload.write(NEW[9000:])


def test_two_updates_in_a_row_alternate_the_slots() -> None:
    bench = Bench()
    for number, version in enumerate(("2.0", "3.0", "4.0"), start=1):
        data = image(version)
        installed(bench, data, grant_id=bytes([number]) * 16, fence=number)
        assert bench.send(bench.running_grant(ConfirmGrant)).status == 200
        assert bench.info().running_slot == 0x10 + number % 2
    assert bench.nvs.fence == 3


# --- repeats and resumption --------------------------------------------------------------------------------------


def test_a_byte_equal_repeat_gets_the_same_answer_and_changes_nothing() -> None:
    bench = Bench()
    install = grants.mint(bench.install_grant(NEW), GRANT_KEY)
    assert bench.send_bytes(install) == bench.send_bytes(install)
    bench.upload(NEW)
    bench.reset()
    confirm = grants.mint(bench.running_grant(ConfirmGrant), GRANT_KEY)
    first = bench.send_bytes(confirm)
    assert first.status == 200
    assert bench.send_bytes(confirm) == first, "evidence of a confirm may be asked for again"
    bench.reset()
    assert code(bench.send_bytes(confirm)) is ErrorCode.NONCE, "after a reset nothing of it is left"


def test_a_lost_connection_goes_on_at_the_next_offset() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW))
    upload = bench.application.open_upload(0, len(NEW))
    upload.write(NEW[:7777])
    upload.lost()
    assert bench.info().next_offset == 7777
    wrong = bench.upload(NEW)
    assert code(wrong) is ErrorCode.OFFSET
    assert wrong.body is not None
    assert strict_loads(wrong.body)[17] == 7777  # type: ignore[index]
    assert bench.upload(NEW, 7777).status == 200
    assert bench.reset().boot.version == "2.0"


def test_a_reset_in_mid_upload_takes_the_same_grant_id_and_fence_over_a_new_nonce() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW, fence=5))
    bench.application.open_upload(0, len(NEW)).write(NEW[:7777])
    bench.reset()
    assert (bench.application.state, bench.info().version) == (State.IDLE, "1.0")
    assert bench.install(NEW, fence=5).status == 200
    assert bench.reset().boot.version == "2.0"


def test_a_later_fence_takes_over_from_a_dead_writer() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW, fence=1))
    old = bench.application.open_upload(0, len(NEW))
    old.write(NEW[:7777])
    assert bench.install(NEW, fence=2, grant_id=b"h" * 16).status == 200
    with pytest.raises(Refusal) as caught:
        old.write(NEW[7777:])
    assert caught.value.code is ErrorCode.STATE
    assert code(bench.application.finish_upload(old)) is ErrorCode.STATE
    assert bench.reset().boot.boot_id == b"h" * 16


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6000), min_size=1, max_size=30))
def test_any_cut_into_chunks_and_connections_gives_the_same_slot(sizes: list[int]) -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW))
    at = 0
    for size in sizes:
        if at + size >= len(NEW):
            break
        upload = bench.application.open_upload(at, len(NEW) - at)
        upload.write(NEW[at : at + size])
        upload.lost()
        at += size
    assert bench.upload(NEW, at).status == 200
    assert bench.flash.read(bench.slot(1).offset, len(NEW)) == NEW


def test_the_rest_of_the_last_page_is_erased() -> None:
    bench = Bench()
    slot = bench.slot(1)
    bench.flash.load(slot.offset, b"\x00" * 0x20000)
    assert bench.install(NEW).status == 200
    assert bench.flash.read(slot.offset, 0x10000)[len(NEW) :].strip(b"\xff") == b""
    assert bench.flash.read(slot.offset + 0x10000, 1) == b"\x00", "and nothing behind it"


# --- every error code --------------------------------------------------------------------------------------------


def raw_grant(labels: dict[int, Any], *, content_type: str = grants.CONTENT_TYPE) -> bytes:
    return cose.sign(dumps(labels), GRANT_KEY, content_type=content_type, kid=bytes(8))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        dumps([1]),
        raw_grant({}),
        raw_grant({1: 9}),
        raw_grant({1: True}),
        raw_grant({1: 2, 2: bytes(33), 3: bytes(16), 4: b"x" * 16, 5: 1, 6: [-16, bytes(32)]}),
        raw_grant({1: 2}, content_type="application/other"),
    ],
)
def test_code_1_malformed_grants(body: bytes) -> None:
    assert code(Bench().send_bytes(body)) is ErrorCode.MALFORMED


@pytest.mark.parametrize("request_", [Request.ATTEST, Request.NONCE])
@pytest.mark.parametrize(
    "body",
    [b"", dumps({}), dumps({1: True}), dumps({1: "x"}), dumps({1: bytes(31)}), dumps({1: 0}), dumps({1: 1, 2: 2})],
)
def test_code_1_malformed_requests(request_: Request, body: bytes) -> None:
    assert code(Bench().application.handle(request_, body)) is ErrorCode.MALFORMED


def test_code_1_malformed_release_inside_a_good_grant() -> None:
    bench = Bench()
    assert code(bench.send(bench.install_grant(NEW, statement=b"\xa0"))) is ErrorCode.MALFORMED


@pytest.mark.parametrize("request_", [Request.ATTEST, Request.NONCE, Request.GRANT])
def test_code_2_too_large(request_: Request) -> None:
    assert code(Bench().application.handle(request_, bytes(1025))) is ErrorCode.TOO_LARGE


def test_code_2_more_bytes_than_granted() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW))
    assert code(bench.application.receive_image(0, [NEW, b"\x00"])) is ErrorCode.TOO_LARGE
    upload = bench.application.open_upload(0, len(NEW))
    with pytest.raises(Refusal) as caught:
        upload.write(NEW + b"\x00")
    assert caught.value.code is ErrorCode.TOO_LARGE


def tampered(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_code_3_signature_of_the_grant() -> None:
    bench = Bench()
    assert code(bench.send_bytes(tampered(grants.mint(bench.install_grant(NEW), GRANT_KEY)))) is ErrorCode.SIGNATURE
    assert bench.nvs.fence == 0, "nothing was consumed"


def test_code_3_signature_of_the_release() -> None:
    bench = Bench()
    grant = bench.install_grant(NEW, statement=tampered(bench.release(NEW)))
    assert code(bench.send(grant)) is ErrorCode.SIGNATURE


@pytest.mark.parametrize("kind", [ConfirmGrant, RevertGrant])
def test_code_3_and_4_guard_what_happens_after_the_boot(kind: type[ConfirmGrant] | type[RevertGrant]) -> None:
    bench = installed(Bench())
    grant = bench.running_grant(kind)
    assert code(bench.send_bytes(tampered(grants.mint(grant, GRANT_KEY)))) is ErrorCode.SIGNATURE
    assert code(bench.send(grant, sign=FOREIGN_KEY)) is ErrorCode.UNKNOWN_KEY
    assert bench.application.state is State.PENDING
    assert bench.send(grant).status == 200, "refusals did not use up the nonce"


def test_code_4_unknown_keys() -> None:
    bench = Bench()
    grant = bench.install_grant(NEW)
    assert code(bench.send(grant, sign=FOREIGN_KEY)) is ErrorCode.UNKNOWN_KEY
    grant = bench.install_grant(NEW, statement=bench.release(NEW, sign=FOREIGN_KEY))
    assert code(bench.send(grant)) is ErrorCode.UNKNOWN_KEY
    grant = bench.install_grant(NEW, statement=bench.release(NEW, sign=GRANT_KEY))
    assert code(bench.send(grant)) is ErrorCode.UNKNOWN_KEY, "a grant key releases nothing"
    assert code(bench.send(bench.install_grant(NEW), sign=RELEASE_KEY)) is ErrorCode.UNKNOWN_KEY


def test_both_key_slots_are_used() -> None:
    owner = Owner([key(7).public_key(), GRANT_KEY.public_key()], [key(8).public_key(), RELEASE_KEY.public_key()])
    bench = Bench(owner=owner)
    assert bench.send(bench.install_grant(NEW)).status == 200
    assert set(token(bench.evidence()).owner_keys) == set(owner.key_ids)
    with pytest.raises(ValueError, match="at most 2"):
        Owner([key(n).public_key() for n in range(3)])


def test_code_5_other_device() -> None:
    bench = Bench()
    other = Bench(identity=make_identity("other", "esp32s3", secret=b"test"))
    assert code(bench.send(other.install_grant(NEW))) is ErrorCode.OTHER_DEVICE


def test_code_6_nonce() -> None:
    bench = Bench()
    assert code(bench.send(bench.install_grant(NEW, device_nonce=b"?" * 16))) is ErrorCode.NONCE
    grant = bench.install_grant(NEW)
    bench.nonce(Verb.INSTALL)
    assert code(bench.send(grant)) is ErrorCode.NONCE, "a new nonce voids the old one"
    grant = bench.install_grant(NEW, device_nonce=bench.nonce(Verb.CANCEL))
    assert code(bench.send(grant)) is ErrorCode.NONCE, "a nonce is for one verb"
    grant = bench.install_grant(NEW)
    bench.now += 600
    assert code(bench.send(grant)) is ErrorCode.NONCE, "too old"
    grant = bench.install_grant(NEW)
    bench.reset()
    assert code(bench.send(grant)) is ErrorCode.NONCE, "a reset forgets it"


def test_code_6_a_consumed_nonce_is_gone() -> None:
    bench = Bench()
    grant = bench.install_grant(NEW)
    assert bench.send(grant).status == 200
    again = bench.install_grant(NEW, fence=2, grant_id=b"h" * 16, device_nonce=grant.device_nonce)
    assert code(bench.send(again)) is ErrorCode.NONCE


def test_code_7_fence() -> None:
    bench = Bench()
    bench.nvs.fence, bench.nvs.fence_grant_id = 5, b"a" * 16
    assert code(bench.send(bench.install_grant(NEW, fence=4))) is ErrorCode.FENCE
    assert code(bench.send(bench.install_grant(NEW, fence=5, grant_id=b"b" * 16))) is ErrorCode.FENCE
    assert bench.send(bench.install_grant(NEW, fence=5, grant_id=b"a" * 16)).status == 200
    bench.upload(NEW)
    bench.reset()
    assert code(bench.send(bench.running_grant(ConfirmGrant, fence=4))) is ErrorCode.FENCE
    assert bench.send(bench.running_grant(ConfirmGrant, fence=6)).status == 200
    assert bench.nvs.fence == 6


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), max_size=12))
@settings(max_examples=25, deadline=None)
def test_the_fence_never_falls_and_only_the_same_grant_may_come_again(tries: list[tuple[int, int]]) -> None:
    bench = Bench()
    statement, stored = bench.release(NEW), (0, b"")
    for fence, number in tries:
        grant_id = bytes([number]) * 16
        reply = bench.send(bench.install_grant(NEW, fence=fence, grant_id=grant_id, statement=statement))
        accepted = fence > stored[0] or (fence, grant_id) == stored
        assert (reply.status == 200) == accepted
        stored = (fence, grant_id) if accepted else stored
        assert bench.nvs.fence == stored[0]


def test_code_8_busy() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW))
    bench.application.open_upload(0, len(NEW)).write(NEW[:100])
    with pytest.raises(Refusal) as caught:
        bench.application.open_upload(100, len(NEW) - 100)
    assert caught.value.code is ErrorCode.BUSY


def test_code_9_state() -> None:
    bench = Bench()
    assert code(bench.upload(NEW)) is ErrorCode.STATE, "no grant, no image"
    assert code(bench.send(bench.running_grant(ConfirmGrant))) is ErrorCode.STATE, "nothing to confirm"
    assert code(bench.send(bench.running_grant(CancelGrant))) is ErrorCode.STATE, "nothing to cancel"
    bench.send(bench.install_grant(NEW))
    assert code(bench.send(bench.running_grant(CancelGrant, grant_id=b"?" * 16))) is ErrorCode.STATE
    bench.upload(NEW)
    assert code(bench.send(bench.install_grant(NEW, fence=2, grant_id=b"h" * 16))) is ErrorCode.STATE, "rebooting"
    bench.reset()
    assert code(bench.send(bench.install_grant(NEW, fence=2, grant_id=b"h" * 16))) is ErrorCode.STATE, "pending"
    other = bench.running_grant(ConfirmGrant, grant_id=b"?" * 16)
    assert code(bench.send(other)) is ErrorCode.STATE, "another installation"


def test_code_9_a_serial_device_takes_no_image_here() -> None:
    bench = Bench(takes_image=False)
    assert code(bench.send(bench.install_grant(NEW))) is ErrorCode.STATE


def test_code_10_offset() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW))
    assert code(bench.application.receive_image(4096, [NEW[4096:]])) is ErrorCode.OFFSET


def test_code_1_an_upload_must_bring_all_that_is_missing() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW))
    assert code(bench.application.receive_image(0, [NEW[:-1]])) is ErrorCode.MALFORMED


def failed_upload(bench: Bench, data: bytes, **changes: Any) -> Reply:
    """An install that is granted and then refused after the last byte; checks what must hold for all of them."""
    before = bench.flash.read(bench.table.otadata.offset, 0x2000) if bench.table.otadata else b""
    assert bench.send(bench.install_grant(data, **changes)).status == 200
    reply = bench.upload(data)
    assert bench.table.otadata is not None
    assert bench.flash.read(bench.table.otadata.offset, 0x2000) == before, "the boot choice is untouched"
    assert bench.application.state is State.IDLE
    assert bench.reset().boot.version == "1.0"
    return reply


def test_code_11_payload_is_not_the_granted_one() -> None:
    bench = Bench()
    assert code(failed_upload(bench, NEW, payload_sha256=bytes(32))) is ErrorCode.DIGEST
    assert bench.flash.read(bench.slot(1).offset, 4096) == b"\xff" * 4096


def test_code_11_measurement_is_not_the_granted_one() -> None:
    bench = Bench()
    other = Digest(alg=-44, value=bytes(64))
    statement = bench.release(NEW, measurements=[other])
    assert code(failed_upload(bench, NEW, result=other, statement=statement)) is ErrorCode.DIGEST


def test_code_11_result_was_never_released() -> None:
    bench = Bench()
    grant = bench.install_grant(NEW, statement=bench.release(image("3.0")))
    assert code(bench.send(grant)) is ErrorCode.DIGEST


def test_code_11_confirm_names_another_measurement() -> None:
    bench = installed(Bench())
    grant = bench.running_grant(ConfirmGrant, result=Digest(alg=-44, value=bytes(64)))
    assert code(bench.send(grant)) is ErrorCode.DIGEST
    assert bench.application.state is State.PENDING


def test_code_12_released_for_another_chip_or_revision() -> None:
    bench = Bench()
    for changes in ({"chip_id": 5}, {"revisions": [300, 400]}, {"revisions": [0, 1]}):
        grant = bench.install_grant(NEW, statement=bench.release(NEW, **changes))
        assert code(bench.send(grant)) is ErrorCode.IMAGE_OR_CHIP


def test_code_12_image_that_cannot_boot_here() -> None:
    wrong = build_app("esp32c3", "porch", "2.0", payload_size=16384, pad_to_page=False)
    bench = Bench()
    statement = bench.release(wrong, chip_id=9)
    assert code(failed_upload(bench, wrong, statement=statement)) is ErrorCode.IMAGE_OR_CHIP
    noise = bytes(5000)
    grant = {"statement": statement, "result": bench.measurement(wrong), "fence": 2}
    assert code(failed_upload_bytes(bench, noise, wrong, grant)) is ErrorCode.IMAGE_OR_CHIP


def failed_upload_bytes(bench: Bench, payload: bytes, claimed: bytes, changes: dict[str, Any]) -> Reply:
    sizes = {"payload_size": len(payload), "payload_sha256": hashlib.sha256(payload).digest()}
    assert bench.send(bench.install_grant(claimed, grant_id=b"n" * 16, **(changes | sizes))).status == 200
    return bench.upload(payload)


def test_code_13_secure_version() -> None:
    identity = make_identity("bench", "esp32s3", secret=b"test", secure_version=3)
    bench = Bench(identity=identity)
    grant = bench.install_grant(NEW)
    assert code(bench.send(grant)) is ErrorCode.SECURE_VERSION
    allowed = image("2.0", secure_version=3)
    assert bench.send(bench.install_grant(allowed)).status == 200


def test_code_14_sequence() -> None:
    bench = Bench()
    bench.nvs.sequence = 9
    statement = bench.release(NEW, sequence=8)
    assert code(bench.send(bench.install_grant(NEW, statement=statement))) is ErrorCode.SEQUENCE
    assert bench.send(bench.install_grant(NEW, statement=statement, allow_downgrade=True)).status == 200


def test_code_15_slot() -> None:
    bench = Bench()
    size = bench.info().target_slot_size + 1
    assert code(bench.send(bench.install_grant(NEW, payload_size=size))) is ErrorCode.SLOT
    assert code(bench.send(bench.install_grant(NEW, statement=bench.release(NEW, image_size=size)))) is ErrorCode.SLOT


def test_code_16_base() -> None:
    bench = Bench()
    grant = bench.install_grant(NEW, payload_format=PayloadFormat.ESP_DELTA, base=bench.measurement(image("0.9")))
    assert code(bench.send(grant)) is ErrorCode.BASE
    assert (Flag.DELTA in bench.info().flags) is delta.available()


def test_code_17_slow_down() -> None:
    bench = Bench()
    bench.evidence()
    reply = bench.application.handle(Request.ATTEST, dumps({1: NONCE}))
    assert (code(reply), reply.status) == (ErrorCode.SLOW_DOWN, 429)
    bench.now += 1
    assert bench.application.handle(Request.ATTEST, dumps({1: NONCE})).status == 200


def test_code_18_flash_io() -> None:
    bench = Bench()
    bench.send(bench.install_grant(NEW))

    def broken(operation: Operation, offset: int, length: int) -> None:
        if operation == "program" and offset >= bench.slot(1).offset + 8192:
            raise FlashIOError("program failed")

    bench.flash.hook = broken
    assert code(bench.upload(NEW)) is ErrorCode.FLASH_IO
    bench.flash.hook = None
    assert bench.info().next_offset == 8192
    assert bench.upload(NEW, 8192).status == 200, "and it goes on when the flash does"


def test_checks_come_in_the_documented_order() -> None:
    """A grant that is wrong in every way is refused for the first thing, then for the next, and so on."""
    bench = Bench(identity=make_identity("bench", "esp32s3", secret=b"test", secure_version=3))
    bench.nvs.fence, bench.nvs.sequence = 5, 9
    size = bench.info().target_slot_size + 1
    wrong: dict[str, Any] = {
        "ueid": b"\x01" * 33,
        "device_nonce": b"?" * 16,
        "fence": 1,
        "payload_size": size,
        "result": Digest(alg=-44, value=bytes(64)),
        "payload_format": PayloadFormat.ESP_DELTA,
        "base": Digest(alg=-44, value=bytes(64)),
    }
    released: dict[str, Any] = {"chip_id": 5, "sign": FOREIGN_KEY}
    repairs: list[tuple[ErrorCode, dict[str, Any], dict[str, Any]]] = [
        (ErrorCode.OTHER_DEVICE, {"ueid": bench.application.ueid}, {}),
        (ErrorCode.NONCE, {"device_nonce": None}, {}),
        (ErrorCode.FENCE, {"fence": 6}, {}),
        (ErrorCode.IMAGE_OR_CHIP, {}, {"chip_id": 9}),
        (ErrorCode.SLOT, {"payload_size": len(NEW)}, {}),
        (ErrorCode.SECURE_VERSION, {}, {"secure_version": 3}),
        (ErrorCode.SEQUENCE, {"allow_downgrade": True}, {}),
        (ErrorCode.BASE, {"payload_format": PayloadFormat.RAW, "base": None}, {}),
        (ErrorCode.UNKNOWN_KEY, {}, {"sign": RELEASE_KEY}),
        (ErrorCode.DIGEST, {"result": bench.measurement(NEW)}, {}),
    ]
    for expected, grant_fix, release_fix in repairs:
        grant = bench.install_grant(NEW, statement=bench.release(NEW, **released), **wrong)
        assert code(bench.send(grant)) is expected
        wrong |= grant_fix
        released |= release_fix
    final = bench.install_grant(NEW, statement=bench.release(NEW, **released), **wrong)
    assert bench.send(final).status == 200


# --- liars -------------------------------------------------------------------------------------------------------


def test_replayed_evidence_has_the_old_nonce() -> None:
    bench = Bench(behaviour=ReplaysEvidence())
    first = bench.evidence()
    assert bench.evidence(b"\x07" * 32) == first


def test_evidence_of_another_device_has_the_right_nonce_and_the_wrong_identity() -> None:
    donor = Bench(identity=make_identity("donor", "esp32s3", secret=b"test"))
    bench = Bench(behaviour=OtherDevicesEvidence(donor.application.evidence))
    claims = token(bench.evidence())
    assert (claims.nonce, claims.ueid) == (NONCE, donor.application.ueid)


def test_rolls_back_before_confirm() -> None:
    bench = installed(Bench(behaviour=RollsBackBeforeConfirm()))
    assert bench.attest().reboot
    assert bench.reset().boot.version == "1.0"
    assert not bench.attest().reboot


def test_rolls_back_after_accept() -> None:
    bench = installed(Bench(behaviour=RollsBackAfterAccept()))
    assert not bench.attest().reboot
    reply = bench.send(bench.running_grant(ConfirmGrant))
    assert reply.reboot
    assert reply.body is not None
    assert token(reply.body).slot_state == SlotState.VALID
    assert bench.reset().boot.version == "1.0"


def test_a_lost_confirm_is_never_answered_and_the_next_one_is() -> None:
    bench = installed(Bench(behaviour=LosesConfirm(times=1)))
    assert bench.send(bench.running_grant(ConfirmGrant)).body is None
    assert bench.application.state is State.PENDING
    assert bench.send(bench.running_grant(ConfirmGrant)).status == 200


def test_never_comes_back_is_silent_from_the_first_unconfirmed_boot_on() -> None:
    behaviour = NeverComesBack()
    assert behaviour.comes_back(unconfirmed=False)
    assert not behaviour.comes_back(unconfirmed=True)
    assert not behaviour.comes_back(unconfirmed=False)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([Request.ATTEST, Request.NONCE, Request.GRANT]), st.binary(max_size=1100))
def test_garbage_gets_a_refusal_and_nothing_else(request_: Request, body: bytes) -> None:
    assert code(BENCH.application.handle(request_, body)) in (ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)
