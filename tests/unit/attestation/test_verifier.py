# SPDX-License-Identifier: Apache-2.0
"""The verdict: honest devices pass, and each lie fails by its own rule. Numbers are those of the list of attacks."""

from dataclasses import replace
from typing import Any

import pytest

from attestation import cose, dice_cbor, eat, keys, mint, nonce
from attestation.anchors import DeviceAnchor, DeviceState, Floors
from attestation.cbor import dumps
from attestation.eat import SlotState
from attestation.errors import Code, Reject
from attestation.keys import Alg
from attestation.policy import (
    Acceptance,
    Algorithm,
    AttestationPolicySpec,
    DebugStatus,
    DenyRules,
    IdForm,
    LeafSigning,
    Measurement,
    Mode,
    RequireMeasured,
    RootOfTrust,
)
from attestation.replay import InMemorySingleUse
from attestation.verifier import ExactNonce, IssuedNonce, verify, verify_once
from tests.unit.attestation.world import (
    AUDIENCE,
    BOOT_ID,
    LOCKED,
    NOW,
    RING,
    Minted,
    compressed,
    context,
    digest,
    judge,
    policy,
    private_key,
    ref,
    refused,
    rejects,
)

RULES = 16
DEVICE = Minted()
EVIDENCE = DEVICE.evidence()
OTHER_APP = Measurement.of_hash(digest("app 9.9"))


@pytest.mark.parametrize("alg", Alg)
@pytest.mark.parametrize("size", [32, 64])
def test_an_honest_device_is_accepted(alg: Alg, size: int) -> None:
    device = Minted(alg=alg, size=size)
    verdict = judge(device, policy=policy(device, algorithms=tuple(Algorithm)))
    assert verdict.accepted, verdict.message
    assert verdict.proven_at_tier
    assert verdict.code is None
    assert len(verdict.trail) == RULES
    assert verdict.unproven == ()
    assert verdict.acceptance is Acceptance.POLICY
    assert verdict.claims is not None
    assert verdict.claims.measurement == device.measurement
    assert verdict.claims.boot_id == BOOT_ID
    assert (verdict.claims.application, verdict.claims.version, verdict.claims.secure_version) == ("porch", "2.0.0", 3)
    assert (verdict.claims.slot_state, verdict.claims.stored_fence) == (SlotState.VALID, 4)
    assert verdict.claims.debug_status is DebugStatus.DISABLED_PERMANENTLY
    assert verdict.nonce_until == NOW + 120


def test_everything_at_once_that_a_task_demands() -> None:
    verdict = judge(
        DEVICE,
        expected=frozenset({DEVICE.measurement}),
        boot_ids=frozenset({BOOT_ID}),
        slot_states=frozenset({SlotState.VALID}),
        floors=Floors(security_version=3, boot_count=12),
    )
    assert verdict.accepted
    assert verdict.proven_at_tier


# Rules 2 to 4: policy, nonce, device


def test_71_no_device_or_no_policy_is_a_no() -> None:
    refused("device.unknown", judge(DEVICE, device=None), "policy")
    refused("policy.missing", judge(DEVICE, policy=None), "policy")
    refused("ref.authority", judge(DEVICE, policy=AttestationPolicySpec()), "boot")


def test_58_another_nonce() -> None:
    assert judge(DEVICE, Minted(nonce=b"n" * 32).evidence(), nonce=b"n" * 32).accepted
    refused("eat.nonce", judge(DEVICE, Minted(nonce=b"n" * 32).evidence(), nonce=b"n" * 31 + b"m"), "nonce")
    refused("eat.nonce", judge(DEVICE, Minted(nonce=b"n" * 31).evidence(), nonce=b"n" * 32), "nonce")
    token = DEVICE.token({eat.NONCE: [DEVICE.fresh_nonce()] * 2})
    refused("eat.nonce", judge(DEVICE, DEVICE.evidence(token=token)), "nonce")
    text_key = DEVICE.token({eat.NONCE: None, "nonce": DEVICE.fresh_nonce()})
    refused("eat.nonce", judge(DEVICE, DEVICE.evidence(token=text_key)), "nonce")


def test_59_expired_or_issued_for_something_else() -> None:
    refused("nonce.expired", judge(DEVICE, now=NOW + 120), "nonce")
    refused("nonce.mac", judge(DEVICE, nonce=IssuedNonce(RING, b"task/2/after")), "nonce")
    ring = nonce.KeyRing(1, {1: b"k" * 32})
    refused("nonce.key", judge(DEVICE, nonce=IssuedNonce(ring, AUDIENCE)), "nonce")


def test_59_nonce_issued_for_another_device() -> None:
    other = Minted(seed=b"device two")
    relayed = Minted(nonce=other.fresh_nonce()).evidence()
    refused("nonce.mac", judge(DEVICE, relayed), "nonce")


def test_70_suspended_or_revoked_device_with_perfect_evidence() -> None:
    for state in (DeviceState.SUSPENDED, DeviceState.REVOKED):
        anchor = replace(DEVICE.anchor(), state=state)
        refused(f"device.{state.lower()}", judge(DEVICE, EVIDENCE, device=anchor), "device")


def test_37_evidence_of_another_device() -> None:
    other = Minted(seed=b"device two", nonce=DEVICE.fresh_nonce())
    refused("anchor.id", judge(DEVICE, other.evidence()), "device")


def test_63_own_chain_under_a_foreign_identity() -> None:
    """A device that holds a good chain claims to be another device."""
    token = DEVICE.token({eat.UEID: Minted(seed=b"device two").ueid})
    refused("eat.ueid", judge(DEVICE, DEVICE.evidence(token=token)), "claims")


# Rules 5 to 7: layers, chain, token


def test_42_longer_and_43_shorter_chains() -> None:
    layer = DEVICE.layers()[1]
    extra_key = private_key(Alg.ES256, b"extended by the application")
    extra = mint.certificate(DEVICE.key("app"), extra_key.public_key(), layer)
    chain = [*DEVICE.chain(), extra]
    extended = DEVICE.evidence(chain, DEVICE.token(key=extra_key))
    refused("ref.layers", judge(DEVICE, extended), "layers")
    truncated = DEVICE.evidence(DEVICE.chain()[:1], DEVICE.token(key=DEVICE.key("boot")))
    refused("ref.layers", judge(DEVICE, truncated), "layers")
    refused("chain.len", judge(DEVICE, DEVICE.evidence([extra] * 5)), "layers")


def test_51_right_hashes_in_the_wrong_layers() -> None:
    device = Minted(bootloader="app 2.0", code="bootloader 1")
    refused("ref.code", judge(DEVICE, device.evidence()), "bootloader")


def test_44_to_49_bad_certificate_ends_at_the_chain() -> None:
    chain = [DEVICE.certificate(0), DEVICE.certificate(1, {dice_cbor.KEY_USAGE: b"\x21"})]
    refused("dice.keyusage", judge(DEVICE, DEVICE.evidence(chain)), "chain")
    named = [DEVICE.certificate(0), DEVICE.certificate(1, {dice_cbor.PROFILE_NAME: "android.18"})]
    refused("dice.profile", judge(DEVICE, DEVICE.evidence(named)), "chain")


def test_denied_key() -> None:
    for layer in ("uds", "boot", "app"):
        denied = DenyRules(keys=(keys.dice_id(DEVICE.key(layer).public_key()).hex(),))
        refused("chain.denied", judge(DEVICE, EVIDENCE, policy=policy(DEVICE, deny=denied)), "chain")


def test_algorithm_that_the_policy_does_not_name() -> None:
    refused("cose.alg", judge(DEVICE, policy=policy(DEVICE, algorithms=(Algorithm.EDDSA,))), "nonce")


@pytest.mark.parametrize("signer", ["uds", "boot", "attacker"])
def test_55_token_by_another_key(signer: str) -> None:
    token = DEVICE.token(key=DEVICE.key(signer))
    refused("sig.invalid", judge(DEVICE, DEVICE.evidence(token=token)), "token")


def test_56_key_id_of_another_key() -> None:
    payload = dumps(DEVICE.claims())
    right = keys.dice_id(DEVICE.key("app").public_key())
    assert judge(DEVICE, DEVICE.evidence(token=cose.sign(payload, DEVICE.key("app"), kid=right))).accepted
    wrong = cose.sign(payload, DEVICE.key("app"), kid=keys.dice_id(DEVICE.key("boot").public_key()))
    refused("leaf.kid", judge(DEVICE, DEVICE.evidence(token=wrong)), "token")


def test_18_token_may_be_tagged_and_may_say_what_it_is() -> None:
    payload = dumps(DEVICE.claims())
    good = cose.sign(payload, DEVICE.key("app"), content_type="application/eat+cwt", tagged=True)
    assert judge(DEVICE, DEVICE.evidence(token=good)).accepted
    other = cose.sign(payload, DEVICE.key("app"), content_type="application/vnd.flashjob.grant+cbor")
    refused("cose.contenttype", judge(DEVICE, DEVICE.evidence(token=other)), "nonce")


def test_57_attestation_key_only_where_the_policy_says_so() -> None:
    key = private_key(Alg.ES256, b"attestation key")
    claims: dict[int, Any] = {
        1: keys.dice_id(DEVICE.key("app").public_key()).hex(),
        2: keys.dice_id(key.public_key()).hex(),
        dice_cbor.SUBJECT_PUBLIC_KEY: keys.encode_cose(key.public_key()),
        dice_cbor.KEY_USAGE: b"\x01",
    }
    leaf = mint.sign_certificate(claims, DEVICE.key("app"))
    evidence = DEVICE.evidence([*DEVICE.chain(), leaf], DEVICE.token(key=key))
    with_leaf = policy(DEVICE, leaf_signing=LeafSigning.ATTESTATION_KEY)
    assert judge(DEVICE, evidence, policy=with_leaf).accepted
    refused("ref.layers", judge(DEVICE, evidence), "layers")
    refused("leaf.missing", judge(DEVICE, EVIDENCE, policy=with_leaf), "layers")
    certifying = mint.sign_certificate({**claims, dice_cbor.KEY_USAGE: b"\x20"}, DEVICE.key("app"))
    forged = DEVICE.evidence([*DEVICE.chain(), certifying], DEVICE.token(key=key))
    refused("leaf.keyusage", judge(DEVICE, forged, policy=with_leaf), "chain")
    by_boot = mint.sign_certificate(claims, DEVICE.key("boot"))
    forged = DEVICE.evidence([*DEVICE.chain(), by_boot], DEVICE.token(key=key))
    refused("sig.invalid", judge(DEVICE, forged, policy=with_leaf), "chain")


@pytest.mark.parametrize("alg", [Alg.ES256, Alg.ES384])
def test_ids_from_compressed_points_only_where_the_policy_says_so(alg: Alg) -> None:
    device = Minted(alg=alg)
    rules = policy(device, algorithms=tuple(Algorithm))
    old_form = rules.model_copy(update={"id_form": IdForm.COMPRESSED})
    assert judge(device, compressed(device), policy=old_form).proven_at_tier
    refused("anchor.id", judge(device, compressed(device), policy=rules), "device")
    refused("anchor.id", judge(device, policy=old_form), "device")
    mixed = mint.evidence(keys.dice_id(device.key("uds").public_key(), compressed=True), device.chain(), device.token())
    refused("dice.subjectid", judge(device, mixed, policy=old_form), "chain")


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("layer", ["uds", "boot", "app"])
def test_a_denied_key_is_denied_in_either_form_of_id(layer: str, form: bool) -> None:
    denied = DenyRules(keys=(keys.dice_id(DEVICE.key(layer).public_key(), compressed=form).hex(),))
    rules = policy(DEVICE, deny=denied, id_form=IdForm.COMPRESSED)
    refused("chain.denied", judge(DEVICE, compressed(DEVICE), policy=rules), "chain")


# Rules 8 and 9: claims, boot


def test_67_68_69_claims_that_contradict() -> None:
    anchor = replace(DEVICE.anchor(), hwmodel=b"esp32c3")
    refused("eat.hardware", judge(DEVICE, device=anchor), "claims")
    refused("eat.hardware", judge(DEVICE, device=replace(DEVICE.anchor(), oemid=0)), "claims")
    assert judge(DEVICE, device=replace(DEVICE.anchor(), oemid=bytes(16), hwmodel=b"esp32s3")).accepted
    for changes, code in (
        ({eat.SWNAME: "another"}, "eat.name"),
        ({eat.EAT_PROFILE: "tag:psacertified.org,2023:psa#tfm"}, "eat.profile"),
        ({eat.DBGSTAT: None}, "eat.dbgstat"),
        ({266: {}}, "eat.unknown"),
    ):
        token = DEVICE.token(changes)
        refused(code, judge(DEVICE, DEVICE.evidence(token=token)), "claims")


@pytest.mark.parametrize(("mode0", "mode1"), [(0, 0), (2, 2), (3, 3), (2, 1), (1, 2), (1, 3), (0, 1)])
def test_46_mode_of_every_layer_counts(mode0: int, mode1: int) -> None:
    refused("dice.mode", judge(Minted(mode0=mode0, mode1=mode1)), "boot")


def test_46_modes_that_the_policy_allows() -> None:
    device = Minted(mode0=1, mode1=3)
    allowed = policy(device, modes=(Mode.NORMAL, Mode.RECOVERY))
    assert judge(device, policy=allowed).accepted


def test_52_authority() -> None:
    refused("ref.authority", judge(Minted(authority=digest("another key"))), "boot")
    refused("ref.authority", judge(Minted(authority=bytes(64))), "boot")
    listed = policy(DEVICE, authority_hashes=(bytes(64).hex(),))
    refused("ref.authority", judge(Minted(authority=bytes(64)), policy=listed), "boot")


def test_65_debug_status() -> None:
    refused("eat.dbgstat", judge(Minted(debug=0)), "boot")
    every = policy(DEVICE, debug_status=tuple(DebugStatus))
    assert judge(Minted(debug=0), policy=every).accepted


# Rules 10 to 12: measurements and versions


def test_50_unknown_application_is_a_measurement_mismatch_even_with_a_stale_boot_id() -> None:
    """The adversary that accepts the write and runs the old image: the measurement tells, before the boot id."""
    old = Minted(code="app 1.0", boot_id=bytes(16))
    target = Minted().measurement
    verdict = judge(
        old,
        expected=frozenset({target}),
        last_confirmed=frozenset({old.measurement}),
        boot_ids=frozenset({BOOT_ID}),
    )
    refused("ref.code", verdict, "application")
    assert verdict.claims is not None
    assert verdict.claims.measurement == old.measurement


def test_acceptable_by_confirmation_or_by_a_task() -> None:
    device = Minted(code="app 9.9")
    refused("ref.code", judge(device), "application")
    assert judge(device, last_confirmed=frozenset({OTHER_APP})).acceptance is Acceptance.CONFIRMED
    assert judge(device, pinned=frozenset({OTHER_APP})).acceptance is Acceptance.PINNED
    expected = frozenset({OTHER_APP})
    refused("ref.code", judge(device, expected=expected), "application")
    assert judge(device, expected=expected, pinned=expected).accepted


def test_deny_lists_win_in_every_layer() -> None:
    for measurement, rule in (
        (DEVICE.measurement, "application"),
        (Measurement.of_hash(digest("bootloader 1")), "bootloader"),
    ):
        denied = policy(DEVICE, deny=DenyRules(measurements=(ref(measurement),)))
        everywhere = frozenset({measurement})
        verdict = judge(DEVICE, EVIDENCE, policy=denied, pinned=everywhere, last_confirmed=everywhere)
        refused("ref.denied", verdict, rule)


def test_application_name_and_partition_table() -> None:
    refused("ref.layers", judge(Minted(name="other")), "application")
    named = policy(DEVICE, partition_tables=(DEVICE.partition_table.hex(),))
    assert judge(DEVICE, policy=named).accepted
    refused("ref.partitions", judge(Minted(partition_table=bytes(32)), policy=named), "application")


def test_bootloader_name_and_version() -> None:
    other = Minted(bootloader_config=dumps({-70002: "loader", -70005: 1}))
    refused("ref.layers", judge(other), "bootloader")
    refused("rollback", judge(Minted(bootloader_config=mint.bootloader_config())), "versions")
    refused("rollback", judge(Minted(bootloader_config=dumps({-70002: "bootloader"}))), "versions")


def test_53_security_version_below_policy_or_floor() -> None:
    refused("rollback", judge(Minted(secure_version=1)), "versions")
    refused("rollback", judge(DEVICE, floors=Floors(security_version=4)), "versions")
    without = dumps({-70002: "porch", -71001: bytes(32), -71002: BOOT_ID, -71003: 16, -71004: LOCKED})
    chain = [
        DEVICE.certificate(0),
        DEVICE.certificate(
            1,
            {
                dice_cbor.CONFIGURATION_DESCRIPTOR: without,
                dice_cbor.CONFIGURATION_HASH: mint.Layer(bytes(64), without, bytes(64), 1).config_hash,
            },
        ),
    ]
    refused("dice.config", judge(DEVICE, DEVICE.evidence(chain)), "chain")


def test_identity_before_an_update_judges_any_application_and_says_so() -> None:
    """Also a denied or rolled back one: it must be possible to update away from it."""
    device = Minted(code="app 9.9", name="other", secure_version=0)
    denied = policy(device, deny=DenyRules(measurements=(ref(device.measurement),)))
    verdict = judge(device, policy=denied, any_application=True)
    assert verdict.accepted
    assert verdict.acceptance is None
    assert any("application" in item for item in verdict.unproven)
    with pytest.raises(ValueError, match="exclude"):
        context(device, any_application=True, expected=frozenset({OTHER_APP}))


# Rules 13 to 16: counter, installation, slot, data


def test_64_boot_counter_that_went_back() -> None:
    refused("clone.bootcount", judge(DEVICE, floors=Floors(boot_count=13)), "counter")


def test_boot_id_of_an_earlier_installation() -> None:
    """A target CDI that leaked earlier: right measurement, right keys of then, wrong installation."""
    refused("boot.id", judge(DEVICE, boot_ids=frozenset({b"another grant id"})), "installation")
    refused("boot.id", judge(DEVICE, boot_ids=frozenset()), "installation")
    assert judge(DEVICE, boot_ids=frozenset({b"another grant id", BOOT_ID})).accepted


def test_no_task_accepts_the_zero_boot_id() -> None:
    refused("boot.id", judge(Minted(boot_id=bytes(16)), boot_ids=frozenset({bytes(16)})), "installation")


def test_14_the_expected_partition_table_counts_whatever_the_policy_accepts() -> None:
    other, expected = Minted(partition_table=bytes(32)), frozenset({DEVICE.measurement})
    table = DEVICE.partition_table
    assert judge(DEVICE, expected=expected, partition_table=table).unproven == ()
    refused("ref.partitions", judge(other, expected=expected, partition_table=table), "installation")
    both = policy(DEVICE, partition_tables=(table.hex(), bytes(32).hex()))
    refused("ref.partitions", judge(other, policy=both, expected=expected, partition_table=table), "installation")
    with pytest.raises(ValueError, match="exclude"):
        context(DEVICE, any_application=True, partition_table=table)


def test_14_the_boot_id_tells_first() -> None:
    """An installation that is not the expected one says nothing of the table that the expected one would have."""
    verdict = judge(Minted(partition_table=bytes(32)), boot_ids=frozenset(), partition_table=DEVICE.partition_table)
    refused("boot.id", verdict, "installation")


def test_14_a_table_that_nobody_names_is_unproven() -> None:
    expected = frozenset({DEVICE.measurement})
    assert judge(DEVICE, expected=expected).unproven == ("the partition table: nothing says which it must be",)
    named = policy(DEVICE, partition_tables=(DEVICE.partition_table.hex(),))
    assert judge(DEVICE, expected=expected, policy=named).unproven == ()
    assert judge(DEVICE).unproven == (), "no application in particular was expected"


def test_slot_must_be_in_an_expected_state() -> None:
    valid = frozenset({SlotState.VALID})
    refused("slot.state", judge(Minted(slot_state=1), slot_states=valid), "slot")
    assert judge(Minted(slot_state=1), slot_states=frozenset({SlotState.PENDING})).accepted
    assert judge(Minted(slot_state=0xFFFFFFFF)).accepted


def test_data_images() -> None:
    right, wrong = Measurement(-16, bytes(32)), Measurement(-16, b"\x01" * 32)
    strict = policy(DEVICE, require_measured=RequireMeasured.ALL)

    def device(images: dict[str, Measurement]) -> bytes:
        claim = {label: [value.alg, value.value] for label, value in images.items()}
        return DEVICE.evidence(token=DEVICE.token({eat.DATA_IMAGES: claim}))

    web = {"web": frozenset({right, Measurement(-44, bytes(64))})}
    assert judge(DEVICE, device({"web": right}), data_images=web, policy=strict).accepted
    refused("ref.data", judge(DEVICE, device({"web": wrong}), data_images=web), "data")
    silent = judge(DEVICE, device({}), data_images=web)
    assert silent.accepted
    assert silent.unproven == ("data image web",)
    refused("ref.data", judge(DEVICE, device({}), data_images=web, policy=strict), "data")
    unknown = judge(DEVICE, device({}), policy=strict)
    assert unknown.accepted
    assert unknown.unproven == ("that all data images are measured: nothing says which there must be",)
    assert judge(DEVICE, device({}), policy=strict, data_images={}).unproven == ()
    unmeasurable = {"nvs": frozenset[Measurement]()}
    assert judge(DEVICE, device({}), data_images=unmeasurable).unproven == ("data image nvs",)
    refused("ref.data", judge(DEVICE, device({"nvs": right}), data_images=unmeasurable, policy=strict), "data")


# Single use


def test_60_same_evidence_again_also_with_another_signature() -> None:
    used = InMemorySingleUse()
    first = verify_once(EVIDENCE, context(DEVICE), used)
    assert first.accepted
    assert first.trail[-1].rule == "single use"
    again = refused("replay", verify_once(EVIDENCE, context(DEVICE), used), "single use")
    assert again.claims is not None
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    message = cose.parse(DEVICE.token())
    high_s = order - int.from_bytes(message.signature[32:], "big")
    signature = message.signature[:32] + high_s.to_bytes(32, "big")
    token = dumps([message.protected_bytes, {}, message.payload, signature])
    assert verify(DEVICE.evidence(token=token), context(DEVICE)).accepted
    refused("replay", verify_once(DEVICE.evidence(token=token), context(DEVICE), used), "single use")


def test_a_refused_answer_does_not_use_up_the_nonce() -> None:
    used = InMemorySingleUse()
    refused("ref.code", verify_once(Minted(code="app 9.9").evidence(), context(DEVICE), used), "application")
    assert verify_once(EVIDENCE, context(DEVICE), used).accepted


def test_72_a_store_that_cannot_tell_refuses() -> None:
    class Down:
        def consume(self, nonce: bytes, *, until: int, now: int) -> None:
            raise Reject(Code.STORE_UNAVAILABLE, "the store does not answer")

    refused("store.unavailable", verify_once(EVIDENCE, context(DEVICE), Down()), "single use")


# Enrolment


def test_an_anchor_belongs_to_its_identity() -> None:
    key = DEVICE.key("uds").public_key()
    rejects("anchor.mismatch", lambda: DeviceAnchor(b"\x01" + bytes(32), key, RootOfTrust.SIGNED_BOOT, "p"))
    zero = mint.signing_key(bytes(32), Alg.ES256).public_key()
    rejects("key.unprovisioned", lambda: DeviceAnchor(keys.ueid(zero), zero, RootOfTrust.SIGNED_BOOT, "p"))


def test_exact_nonce_is_compared_whole() -> None:
    value = DEVICE.fresh_nonce()
    assert verify(EVIDENCE, context(DEVICE, nonce=ExactNonce(value))).accepted
    refused("eat.nonce", verify(EVIDENCE, context(DEVICE, nonce=ExactNonce(value[:8]))), "nonce")
