# SPDX-License-Identifier: Apache-2.0
"""Which place counts, and when it is looked at again."""

from dataclasses import replace

import pytest

from attestation.discovery import rules
from attestation.discovery.addresses import Address
from attestation.discovery.enrolled import EnrolledDevice, Judged
from attestation.discovery.places import NetworkPlace, PortPlace
from attestation.discovery.ports import SerialPort
from attestation.discovery.sightings import Pace, Sighting, by_weight, network_endpoint
from tests.unit.attestation.world import Minted, judge
from tests.unit.discovery.test_rules import answer

PHONE = Minted()
ID = PHONE.ueid.hex()
ANYBODY = Minted(seed=b"anybody")
GOOD = rules.judge(answer(None), judge(PHONE, PHONE.evidence()))
STRANGER = Judged(judge(PHONE, ANYBODY.evidence()), "chain.signature", "not its own")
UNKNOWN = replace(GOOD[0], code="ref.code")
PACE = Pace(scan_seconds=5, silent_seconds=60, unknown_seconds=300)


def at(host: int, judged: Judged | None = None, **more: object) -> Sighting:
    address = Address(f"192.0.2.{host}", 80)
    one = Sighting(NetworkPlace(address), device_id=ID, endpoint=str(address), judged=judged)
    one.listing = GOOD[1] if judged is GOOD[0] else None
    for name, value in more.items():
        setattr(one, name, value)
    return one


def test_rule_1_proof_counts_then_identity_then_what_is_configured() -> None:
    proven, itself = at(4, GOOD[0]), at(3, UNKNOWN)
    configured, stranger = at(2, None, expected=ID), at(1, STRANGER)
    assert proven.listing is not None
    everybody = [stranger, configured, itself, proven]
    assert by_weight(everybody, ID) == [proven, itself, configured, stranger]
    assert by_weight(everybody, "another") == []


def test_rule_2_a_device_is_where_it_has_proven_to_be() -> None:
    device = EnrolledDevice(ID)
    assert network_endpoint(device, [at(1, STRANGER)]) == ""
    assert network_endpoint(device, [at(1, STRANGER), at(2, UNKNOWN)]) == "192.0.2.2:80"
    assert network_endpoint(device, [at(2, UNKNOWN), at(3, GOOD[0])]) == "192.0.2.3:80"


def test_rule_2_in_a_tasks_hands_where_it_alone_says_it_is() -> None:
    device = EnrolledDevice(ID, in_hand=True)
    assert network_endpoint(device, [at(1)]) == "192.0.2.1:80"
    assert network_endpoint(device, [at(1), at(2)]) == ""
    assert network_endpoint(device, [at(1), at(2, None, failures=1)]) == "192.0.2.1:80"


@pytest.mark.parametrize(
    ("changes", "pauses"),
    [
        ({"silent": False}, [5.0]),
        ({"silent": False, "failures": 1}, [0.5]),
        ({"silent": False, "failures": 9}, [5.0]),
        ({"expected": ID}, [0.5, 1, 2, 4, 8, 16, 32, 60, 60]),
        ({"enrolled": True}, [0.5, 1, 2, 4, 8, 16, 32, 60, 60]),
        ({"expected": ID, "in_hand": True}, [0.5, 1, 2, 4, 5, 5]),
        ({}, [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]),
        ({"failures": 10**6}, [300.0]),
    ],
)
def test_rule_3_the_dead_are_asked_ever_less(changes: dict[str, object], pauses: list[float]) -> None:
    one = Sighting(NetworkPlace(Address("192.0.2.1", 80)))
    for name, value in changes.items():
        setattr(one, name, value)
    found: list[float | None] = []
    for _ in pauses:
        if found or (one.silent and not one.failures):
            one.failures += 1
        found.append(one.pause(PACE, interval=3600, now=0))
    assert found == pauses


def test_rule_3_who_may_be_dead_does_not_hold_up_who_is_not() -> None:
    place = NetworkPlace(Address("192.0.2.1", 80))
    assert Sighting(place).doubtful
    assert not Sighting(place, expected=ID).doubtful, "an enrolled device's first look"
    assert Sighting(place, expected=ID, failures=1).doubtful
    assert not Sighting(place, silent=False, failures=3).doubtful


def test_a_port_is_left_alone_until_evidence_is_due() -> None:
    port = Sighting(PortPlace(SerialPort("/virtual/a", "/a", "/dev/pts/1")), silent=False)
    assert port.pause(PACE, interval=3600, now=200) == 3600
    port.attestation = answer(None)  # at 100
    assert port.pause(PACE, interval=3600, now=200) == 3500
    assert port.pause(PACE, interval=60, now=200) == 0
    port.failures = 20
    assert port.pause(PACE, interval=3600, now=200) == 3600
    port.enrolled = True
    assert port.pause(PACE, interval=3600, now=200) == 300
    assert port.pause(PACE, interval=60, now=200) == 60
    port.in_hand = True
    assert port.pause(PACE, interval=3600, now=200) is None
