# SPDX-License-Identifier: Apache-2.0
"""Boots of one device, seen at several places."""

from attestation import eat
from attestation.discovery.boots import Boots
from attestation.discovery.enrolled import EnrolledDevice, Judged
from tests.unit.attestation.world import Minted, judge

ID = Minted().ueid.hex()


def boot(count: int, seed: bytes = b"a") -> Judged:
    phone = Minted(boot_count=count)
    verdict = judge(phone, phone.evidence(token=phone.token({eat.BOOTSEED: seed * 16})))
    assert verdict.accepted
    return Judged(verdict, "", "all is well", True)


def test_rule_1_each_twin_alone_is_fine_and_both_are_not() -> None:
    boots = Boots()
    boots.saw(ID, boot(3, b"a"), asked_at=1, seen_at=1)
    boots.saw(ID, boot(3, b"a"), asked_at=2, seen_at=2)
    boots.saw("another", boot(3, b"b"), asked_at=3, seen_at=3)
    assert boots.alarm(ID) is None
    boots.saw(ID, boot(3, b"b"), asked_at=4, seen_at=4)
    alarm = boots.alarm(ID)
    assert alarm is not None
    assert (alarm.code, alarm.message) == ("clone.seed", "two seeds in boot 3")
    assert boots.alarm("another") is None


def test_an_answer_that_was_overtaken_is_no_twin() -> None:
    boots = Boots()
    boots.saw(ID, boot(4, b"b"), asked_at=10, seen_at=20)
    boots.saw(ID, boot(3, b"a"), asked_at=15, seen_at=25)
    assert boots.alarm(ID) is None
    boots.saw(ID, boot(3, b"a"), asked_at=26, seen_at=27)
    assert boots.alarm(ID) is not None


def test_rule_2_the_first_alarm_stands_until_released() -> None:
    boots = Boots()
    boots.saw(ID, boot(4), asked_at=1, seen_at=1)
    boots.saw(ID, boot(3), asked_at=2, seen_at=2)
    first = boots.alarm(ID)
    assert first is not None
    assert first.code == "clone.bootcount"
    boots.saw(ID, boot(5, b"c"), asked_at=3, seen_at=3)
    assert boots.alarm(ID) == first
    assert not boots.enrolled(ID, EnrolledDevice(ID)), "the enrolment has not heard of it yet"
    assert boots.alarm(ID) == first
    assert not boots.enrolled(ID, EnrolledDevice(ID, withheld="quarantined: clone.bootcount"))
    assert boots.alarm(ID) == first
    assert boots.enrolled(ID, EnrolledDevice(ID)), "a person has released it"
    assert boots.alarm(ID) is None
    boots.saw(ID, boot(3), asked_at=4, seen_at=4)
    assert boots.alarm(ID) is None, "the other twin's boots no longer count"


def test_rule_2_who_is_enrolled_anew_begins_anew() -> None:
    boots = Boots()
    assert not boots.enrolled(ID, None)
    boots.saw(ID, boot(4), asked_at=1, seen_at=1)
    boots.saw(ID, boot(3), asked_at=2, seen_at=2)
    assert boots.enrolled(ID, None)
    assert boots.alarm(ID) is None
