# SPDX-License-Identifier: Apache-2.0
"""clones: what tells two devices with one secret apart, rule by rule, and standing."""

import functools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import clones, eat, standing
from attestation.anchors import DeviceState
from attestation.clones import Sighting, observe
from attestation.errors import Code
from attestation.standing import Change, Standing, Verb, changed, current
from attestation.verdict import Verdict
from tests.unit.attestation.world import NOW, Minted, judge, policy, rejects

SEEDS = {name: bytes([number]) * 16 for number, name in enumerate("abc")}


def boot(count: int, seed: str = "a") -> Verdict:
    phone = Minted(boot_count=count)
    return judge(phone, phone.evidence(token=phone.token({eat.BOOTSEED: SEEDS[seed]})))


def play(*boots: tuple[int, str]) -> tuple[Code | None, tuple[Sighting, ...]]:
    """The alarm of the last of these boots; none before it."""
    known: tuple[Sighting, ...] = ()
    alarm = None
    for at, (count, seed) in enumerate(boots):
        assert alarm is None
        finding = observe(known, boot(count, seed), asked_at=NOW + at, seen_at=NOW + at)
        known, alarm = finding.sightings, finding.alarm
    return alarm, known


def test_rule_1_nobody_else_can_raise_an_alarm() -> None:
    known = observe((), boot(9), asked_at=NOW, seen_at=NOW).sightings
    phone = Minted(boot_count=3)
    forged = judge(phone, phone.evidence(token=phone.token(key=Minted(seed=b"attacker").key("app"))))
    assert forged.code == Code.SIG_INVALID
    assert observe(known, forged, asked_at=NOW + 1, seen_at=NOW + 1) == clones.Finding(known)
    named = judge(phone, phone.evidence(token=phone.token({eat.UEID: bytes(33)}, key=Minted(seed=b"x").key("app"))))
    assert observe(known, named, asked_at=NOW + 1, seen_at=NOW + 1).alarm is None


def test_rule_2_an_answer_that_was_held_back_convicts_nobody() -> None:
    """Somebody asks with two nonces, the later one first, and hands in the answer from before the reboot at the end."""
    known = observe((), boot(9, "b"), asked_at=NOW, seen_at=NOW + 60).sightings
    held = observe(known, boot(8, "a"), asked_at=NOW + 59, seen_at=NOW + 90)
    assert held.alarm is None
    assert [one.boot_count for one in held.sightings] == [8, 9]
    assert observe(known, boot(8, "a"), asked_at=NOW + 60, seen_at=NOW + 61).alarm is Code.CLONE_BOOTCOUNT
    below_floor = observe(known, boot(8, "a"), asked_at=NOW + 59, seen_at=NOW + 90, boot_count_floor=9)
    assert below_floor.alarm is None, "the floor may have risen while the answer was held back"
    assert observe(known, boot(9, "c"), asked_at=NOW - 60, seen_at=NOW + 90).alarm is Code.CLONE_SEED, "in any order"


def test_rule_2_twins_that_are_asked_side_by_side_are_told_apart_when_asked_again() -> None:
    known: tuple[Sighting, ...] = ()
    for at in (NOW, NOW + 3600):
        alarms: list[Code | None] = []
        for count, seed in ((9, "b"), (8, "a")):
            finding = observe(known, boot(count, seed), asked_at=at, seen_at=at + 5)
            known, alarms = finding.sightings, [*alarms, finding.alarm]
        assert alarms == [None, None if at == NOW else Code.CLONE_BOOTCOUNT]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=8),
    st.sets(st.integers(1, 20)),
)
def test_rule_2_one_device_is_never_taken_for_two(asks: list[tuple[int, int, int]], reboots: set[int]) -> None:
    """Whoever asks it when, and however long answers take to come and to be handed in."""
    arrivals = []
    for asked, until_answered, until_seen in asks:
        answered = asked + until_answered
        count = 1 + sum(reboot <= answered for reboot in reboots)
        arrivals.append((answered + until_seen, asked, count))
    known: tuple[Sighting, ...] = ()
    for seen, asked, count in sorted(arrivals):
        later = observe(known, boot_of(count), asked_at=asked, seen_at=seen)
        assert later.alarm is None, later.message
        known = later.sightings
    now = boot_of(1 + len(reboots))
    assert observe(known, now, asked_at=100, seen_at=100).alarm is None, "asked again it is what it is"


@functools.cache
def boot_of(count: int) -> Verdict:
    phone = Minted(boot_count=count)
    return judge(phone, phone.evidence(token=phone.token({eat.BOOTSEED: bytes([count]) * 16})))


def test_rule_3_the_devices_own_key_names_another() -> None:
    phone = Minted()
    verdict = judge(phone, phone.evidence(token=phone.token({eat.UEID: Minted(seed=b"device two").ueid})))
    assert verdict.code is Code.EAT_UEID
    assert observe((), verdict, asked_at=NOW, seen_at=NOW).alarm is Code.CLONE_IDENTITY


def test_rule_4_the_counter_goes_back() -> None:
    assert play((5, "a"), (4, "b"))[0] is Code.CLONE_BOOTCOUNT
    assert observe((), boot(5), asked_at=NOW, seen_at=NOW, boot_count_floor=6).alarm is Code.CLONE_BOOTCOUNT
    assert observe((), boot(5), asked_at=NOW, seen_at=NOW, boot_count_floor=5).alarm is None


def test_rule_5_seeds_contradict() -> None:
    assert play((5, "a"), (5, "b"))[0] is Code.CLONE_SEED
    assert play((5, "a"), (6, "b"), (7, "a"))[0] is Code.CLONE_SEED
    assert play((5, "a"), (5, "a"), (6, "b"), (6, "b"))[0] is None


def test_rule_5_holds_for_a_rejected_but_authentic_verdict() -> None:
    known = observe((), boot(5, "a"), asked_at=NOW, seen_at=NOW).sightings
    phone = Minted(boot_count=5, code="not accepted")
    verdict = judge(phone, phone.evidence(token=phone.token({eat.BOOTSEED: SEEDS["b"]})), policy=policy(phone))
    assert verdict.code is Code.REF_CODE
    assert observe(known, verdict, asked_at=NOW + 1, seen_at=NOW + 1).alarm is Code.CLONE_SEED


def test_rule_6_one_sighting_per_boot_and_only_the_newest() -> None:
    known: tuple[Sighting, ...] = ()
    for count in range(1, 2 * clones.MOST_SIGHTINGS):
        phone = Minted(boot_count=count)
        verdict = judge(phone, phone.evidence(token=phone.token({eat.BOOTSEED: bytes([count]) * 16})))
        for _ in range(2):
            finding = observe(known, verdict, asked_at=NOW + count, seen_at=NOW + count)
            assert finding.alarm is None
            known = finding.sightings
    assert [one.boot_count for one in known] == list(range(clones.MOST_SIGHTINGS, 2 * clones.MOST_SIGHTINGS))


def turns(memory: int, *boots: tuple[int, str]) -> Code | None:
    """The first alarm of somebody who remembers so many boots, and of each seed only its beginning."""
    known: tuple[Sighting, ...] = ()
    for at, (count, seed) in enumerate(boots):
        finding = observe(known, boot(count, seed), asked_at=NOW + at, seen_at=NOW + at)
        if finding.alarm is not None:
            return finding.alarm
        short = (replace(one, seed_sha256=one.seed_sha256[: clones.LEAST_SEED_BYTES]) for one in finding.sightings)
        known = tuple(short)[-memory:]
    return None


def test_rule_6_how_much_memory_tells_devices_that_take_turns() -> None:
    two, three = ((5, "a"), (6, "b"), (7, "a"), (8, "b")), ((5, "a"), (6, "b"), (7, "c"), (8, "a"))
    assert [turns(memory, *two) for memory in (1, 2)] == [None, Code.CLONE_SEED]
    assert [turns(memory, *three) for memory in (2, 3)] == [None, Code.CLONE_SEED]
    for lower in ((5, "a"), (6, "b"), (6, "c")), ((5, "a"), (7, "b"), (6, "c")):
        assert turns(1, *lower) is not None, "counters are told by the newest boot alone"
    fresh = ((5, "a"), (6, "b"), (7, "c"))
    assert turns(clones.MOST_SIGHTINGS, *fresh) is None, "one device that boots often looks the same: a limit"


def test_rule_6_too_short_a_beginning_of_a_seed_is_none() -> None:
    known = (Sighting(5, b"", NOW),)
    assert observe(known, boot(6, "b"), asked_at=NOW, seen_at=NOW).alarm is None
    assert observe(known, boot(5, "a"), asked_at=NOW, seen_at=NOW).alarm is Code.CLONE_SEED


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=2, max_size=8))
def test_two_honest_looking_devices_are_told_apart(turns: list[tuple[int, bool]]) -> None:
    """Each counts up and draws anew; as soon as the second is seen at or below the first's counter there is an alarm."""
    counters, known, last = {True: 0, False: 0}, (), 0
    history: tuple[Sighting, ...] = known
    for at, (step, which) in enumerate(turns):
        counters[which] += step
        count = counters[which]
        seed = bytes([count % 256, which]) * 8
        phone = Minted(boot_count=count)
        verdict = judge(phone, phone.evidence(token=phone.token({eat.BOOTSEED: seed})))
        finding = observe(history, verdict, asked_at=NOW + at, seen_at=NOW + at)
        seen = {one.boot_count: one for one in history}
        expected = count < last or (count in seen and seen[count].seed_sha256 != _sha(seed))
        assert (finding.alarm is not None) == expected
        if finding.alarm is not None:
            return
        history, last = finding.sightings, max(last, count)


def _sha(seed: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(seed).digest()


def change(history: tuple[Change, ...], verb: Verb, by: str = "ann", reason: str = "because") -> tuple[Change, ...]:
    return changed(history, verb, by=by, reason=reason, at=NOW)


@pytest.mark.parametrize(("by", "reason"), [("", "x"), ("ann", " "), ("a\nb", "x"), ("ann", "x" * 513)])
def test_standing_rule_1_who_and_why(by: str, reason: str) -> None:
    rejects("standing", lambda: change((), Verb.SUSPEND, by, reason))


def test_standing_rules_2_to_5() -> None:
    suspended = change((), Verb.SUSPEND)
    assert current(suspended) is Standing.SUSPENDED
    rejects("standing", lambda: change(suspended, Verb.QUARANTINE))
    quarantined = change((), Verb.QUARANTINE)
    assert current(change(quarantined, Verb.SUSPEND)) is Standing.SUSPENDED
    for held in (suspended, quarantined):
        assert current(held).state is DeviceState.SUSPENDED
        assert current(change(held, Verb.RELEASE)) is Standing.ACTIVE
    rejects("standing", lambda: change((), Verb.RELEASE))
    for history in ((), suspended, quarantined):
        revoked = change(history, Verb.REVOKE)
        assert current(revoked).state is DeviceState.REVOKED
        for verb in Verb:
            assert "final" in str(rejects("standing", lambda verb=verb, revoked=revoked: change(revoked, verb)))
    history = ()
    for _ in range(standing.MOST_CHANGES):
        history = change(change(history, Verb.SUSPEND), Verb.RELEASE)
    assert len(history) == standing.MOST_CHANGES
