# SPDX-License-Identifier: Apache-2.0
"""A chain seen before saves work and nothing else: with a cache and without, each verdict is the same, trail and all."""

import copy
from collections.abc import Callable
from dataclasses import replace
from random import Random
from threading import Barrier, Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from attestation import dice_cbor, keys, mint, verifier
from attestation.anchors import DeviceState, Floors
from attestation.cbor import dumps, strict_loads
from attestation.eat import SlotState
from attestation.keys import Alg
from attestation.policy import (
    AttestationPolicySpec,
    BootloaderRules,
    DebugStatus,
    DenyRules,
    IdForm,
    LeafSigning,
    Measurement,
    Mode,
    RootOfTrust,
)
from attestation.verifier import ChainCache, Context, Verdict, verify
from tests.unit.attestation import test_attacks, world
from tests.unit.attestation.test_verifier_properties import spoiled
from tests.unit.attestation.world import NOW, Minted, context, digest, policy, private_key, ref

DEVICE = Minted()
EVIDENCE = DEVICE.evidence()
STRANGER = private_key(Alg.ES256, b"stranger")
BOOT_KEY = keys.dice_id(DEVICE.key("boot").public_key())
BOOTLOADER = Measurement.of_hash(digest("bootloader 1"))

DEVICES = [
    DEVICE,
    Minted(mode0=2),
    Minted(mode1=0),
    Minted(bootloader="bootloader 9"),
    Minted(bootloader_config=dumps({dice_cbor.COMPONENT_NAME: "elsewhere", dice_cbor.SECURITY_VERSION: 1})),
    Minted(authority=bytes(64)),
    Minted(efuses=0),
    Minted(mode0=0, mode1=0, authority=bytes(64), efuses=0),
    Minted(code="app 9.9"),
    Minted(secure_version=1),
    Minted(seed=b"device two"),
]
EVIDENCES = [
    *(device.evidence() for device in DEVICES),
    DEVICE.evidence(DEVICE.x509_chain()),
    DEVICE.evidence(token=DEVICE.token(key=STRANGER)),
    DEVICE.evidence([DEVICE.certificate(0, {dice_cbor.PROFILE_NAME: "android.16"}), DEVICE.certificate(1)]),
    DEVICE.evidence(DEVICE.chain()[:1]),
    DEVICE.evidence(token=Minted(debug=0).token()),
]
POLICIES: list[AttestationPolicySpec] = [
    policy(DEVICE, **changes)
    for changes in (
        {},
        {"modes": (Mode.NORMAL, Mode.DEBUG)},
        {"deny": DenyRules(keys=(BOOT_KEY.hex(),))},
        {"deny": DenyRules(measurements=(ref(BOOTLOADER),))},
        {"authority_hashes": ()},
        {"bootloader": BootloaderRules(name="elsewhere", measurements=(ref(BOOTLOADER),))},
        {"bootloader": BootloaderRules()},
        {"debug_status": (DebugStatus.DISABLED_FULLY_AND_PERMANENTLY,)},
        {"leaf_signing": LeafSigning.ATTESTATION_KEY},
        {"id_form": IdForm.COMPRESSED},
        {"partition_tables": ("00" * 32,)},
        {"min_root_of_trust": RootOfTrust.ISOLATED},
    )
]
TOLD: list[dict[str, Any]] = [
    {},
    {"any_application": True},
    {"expected": frozenset({DEVICE.measurement})},
    {"boot_ids": frozenset({bytes(16)})},
    {"slot_states": frozenset({SlotState.PENDING})},
    {"floors": Floors(security_version=9)},
    {"now": NOW + 500},
]
ANCHORS = [
    replace(owner.anchor(tier), state=state)
    for owner in (DEVICE, DEVICES[-1])
    for tier in (RootOfTrust.SIGNED_BOOT, RootOfTrust.SELF_REPORTED, RootOfTrust.ISOLATED)
    for state in (DeviceState.ACTIVE, DeviceState.SUSPENDED)
]


def judge(chains: ChainCache | None, evidence: bytes = EVIDENCE, **changes: Any) -> Verdict:
    return verify(evidence, context(DEVICE, **changes), chains=chains)


def warm(**changes: Any) -> ChainCache:
    """A cache that knows the honest chain."""
    chains = ChainCache()
    assert judge(chains, **changes).accepted
    assert len(chains) == 1
    return chains


def as_alone(chains: ChainCache, evidence: bytes, told: Context) -> Verdict:
    """The verdict with this cache, which is the same as without any."""
    verdict = verify(evidence, told, chains=chains)
    assert verdict == verify(evidence, told)
    return verdict


def test_a_known_chain_costs_one_signature_and_gives_the_same_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    chains, verified = warm(), []
    honest: Callable[..., Any] = dice_cbor.verify_chain

    def counted(*arguments: Any, **named: Any) -> Any:
        verified.append(arguments)
        return honest(*arguments, **named)

    alone = judge(None)
    monkeypatch.setattr(dice_cbor, "verify_chain", counted)
    assert judge(chains) == alone
    assert verified == []
    assert (chains.hits, chains.misses) == (1, 1)


def test_no_attack_has_another_answer_with_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, twice over one cache: what one leaves behind helps none."""
    chains, judged = warm(), []

    def both(evidence: bytes, told: Context, *, chains: ChainCache | None = chains) -> Verdict:
        judged.append(evidence)
        assert chains is not None
        return as_alone(chains, evidence, told)

    for module in (world, test_attacks):
        monkeypatch.setattr(module, "verify", both)
    for number, name, code, run in test_attacks.ATTACKS * 2:
        assert test_attacks.outcome(run) == code, (number, name)
    assert len(judged) > 2 * 100
    assert chains.hits > 50


def mostly_first(several: list[Any]) -> st.SearchStrategy[Any]:
    """The honest one as often as all the others."""
    return st.one_of(st.just(several[0]), st.sampled_from(several))


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(mostly_first(EVIDENCES), mostly_first(POLICIES), mostly_first(ANCHORS), mostly_first(TOLD)),
        min_size=2,
        max_size=6,
    )
)
def test_no_history_changes_a_verdict(history: list[tuple[bytes, AttestationPolicySpec, Any, dict[str, Any]]]) -> None:
    chains = ChainCache(2)
    assert judge(chains).accepted
    for evidence, rules, anchor, told in history:
        as_alone(chains, evidence, context(DEVICE, policy=rules, device=anchor, **told))


WARM = warm()


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_no_mutation_changes_its_verdict(random: Random) -> None:
    told = context(DEVICE)
    as_alone(WARM, dumps(spoiled(strict_loads(EVIDENCE), random)), told)
    flipped = bytearray(EVIDENCE)
    flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    assert not as_alone(WARM, bytes(flipped), told).accepted
    as_alone(WARM, EVIDENCE[: random.randrange(len(EVIDENCE))], told)
    assert len(WARM) == 1


@pytest.mark.parametrize(
    ("code", "evidence", "changes"),
    [
        ("chain.denied", EVIDENCE, {"policy": POLICIES[2]}),
        ("sig.invalid", DEVICE.evidence(token=DEVICE.token(key=STRANGER)), {}),
        ("dice.mode", DEVICES[1].evidence(), {}),
        ("ref.authority", EVIDENCE, {"policy": policy(DEVICE, authority_hashes=())}),
        ("eat.dbgstat", Minted(debug=0).evidence(), {}),
        ("ref.layers", EVIDENCE, {"policy": POLICIES[5]}),
        ("ref.denied", EVIDENCE, {"policy": POLICIES[3]}),
        ("ref.code", DEVICES[3].evidence(), {}),
    ],
)
def test_a_refusal_is_never_remembered(code: str, evidence: bytes, changes: dict[str, Any]) -> None:
    chains = ChainCache()
    for _ in range(2):
        assert judge(chains, evidence, **changes).code == code
        assert len(chains) == 0


def test_what_depends_on_more_than_the_chain_is_judged_anew() -> None:
    """Suspended, too old, another installation: the chain is known, and the answer is no."""
    chains = warm()
    told: list[tuple[str, dict[str, Any]]] = [
        ("device.suspended", {"device": replace(DEVICE.anchor(), state=DeviceState.SUSPENDED)}),
        ("device.revoked", {"device": replace(DEVICE.anchor(), state=DeviceState.REVOKED)}),
        ("eat.hardware", {"device": replace(DEVICE.anchor(), hwmodel=b"esp32c3")}),
        ("rollback", {"floors": Floors(security_version=4)}),
        ("clone.bootcount", {"floors": Floors(boot_count=13)}),
        ("ref.code", {"expected": frozenset({BOOTLOADER})}),
        ("boot.id", {"boot_ids": frozenset({b"another boot id."})}),
        ("slot.state", {"slot_states": frozenset({SlotState.PENDING})}),
        ("nonce.expired", {"now": NOW + 120}),
    ]
    for code, changes in told:
        assert judge(chains, **changes).code == code
    assert judge(chains, Minted(debug=0).evidence([*DEVICE.chain()])).code == "eat.dbgstat"
    assert judge(chains).accepted


def test_two_policies_share_nothing() -> None:
    """Also one that was changed under its old name, whichever way its copy was made."""
    chains = warm()
    rules = policy(DEVICE)
    denied = {"deny": DenyRules(keys=(BOOT_KEY.hex(),))}
    for changed in (rules.model_copy(update=denied), rules.model_copy(update=denied, deep=True)):
        assert judge(chains, policy=changed).code == "chain.denied"
    assert judge(chains, policy=copy.deepcopy(rules)).accepted
    assert chains.hits == 1
    with pytest.raises(ValidationError, match="frozen"):
        rules.deny = denied["deny"]  # type: ignore[misc]


def test_two_roots_of_trust_share_nothing() -> None:
    """What passes as SelfReported proves nothing under SignedBoot."""
    open_device = DEVICES[7]
    chains = ChainCache()
    evidence, weak = open_device.evidence(), open_device.anchor(RootOfTrust.SELF_REPORTED)
    assert judge(chains, evidence, device=weak).accepted
    assert judge(chains, evidence, device=open_device.anchor()).code == "dice.mode"
    assert judge(chains, evidence, device=weak).accepted
    assert chains.hits == 1


def test_two_devices_share_nothing() -> None:
    """A device that sends another's chain under its own anchor id."""
    chains, other = warm(), DEVICES[-1]
    stolen = mint.evidence(keys.dice_id(other.key("uds").public_key()), DEVICE.chain(), other.token())
    assert verify(stolen, context(other), chains=chains).code == "chain.issuer"
    assert chains.hits == 0


def test_it_is_bounded_and_forgets_what_was_unused_for_longest() -> None:
    chains = ChainCache(2)
    first, second, third = (Minted(seed=f"device {number}".encode()) for number in range(3))
    for device in (first, second, first, third):
        assert verify(device.evidence(), context(device), chains=chains).accepted
    assert (len(chains), chains.hits) == (2, 1)
    assert verify(first.evidence(), context(first), chains=chains).accepted
    assert chains.hits == 2
    assert verify(second.evidence(), context(second), chains=chains).accepted
    assert chains.hits == 2
    with pytest.raises(ValueError, match="at least one"):
        ChainCache(0)


def test_threads_may_share_it() -> None:
    chains, ready, wrong = ChainCache(2), Barrier(4), list[Verdict]()
    told = [(device.evidence(), context(device)) for device in (DEVICE, DEVICES[1], DEVICES[-1], Minted(seed=b"3"))]
    expected = [verify(*one) for one in told]

    def judge_all(offset: int) -> None:
        ready.wait()
        for number in range(offset, offset + 40):
            verdict = verify(*told[number % 4], chains=chains)
            if verdict != expected[number % 4]:
                wrong.append(verdict)

    threads = [Thread(target=judge_all, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(chains) <= 2
    assert chains.hits + chains.misses == 160


def test_a_known_chain_is_looked_for_only_once_the_device_is_to_be_believed() -> None:
    """The trail names rules in one order, and the cache is not asked about who is suspended or stale."""
    chains = warm()
    asked = chains.hits + chains.misses
    judge(chains, device=replace(DEVICE.anchor(), state=DeviceState.REVOKED))
    judge(chains, now=NOW + 120)
    judge(chains, b"garbage")
    assert chains.hits + chains.misses == asked
    assert [step.rule for step in judge(chains).trail] == [name for name, _ in verifier._RULES]
