# SPDX-License-Identifier: Apache-2.0
"""What a release ends, and when; the rules are those of `flashjob.api.quarantine`."""

from hypothesis import given
from hypothesis import strategies as st

from flashjob.api.device import DeviceStatus
from flashjob.api.quarantine import Cause, causes, withheld
from flashjob.wire.clock import seconds

T = seconds("2026-01-02T03:04:05Z")
HELD = {"quarantine": {"reason": "BootIdMismatch", "since": "2026-01-02T03:04:05Z"}}
TWIN = {"attestation": {"accepted": False, "code": "clone.seed", "at": "2026-01-02T03:05:05Z"}}


def test_rule_1_a_quarantine_and_a_shared_identity_withhold() -> None:
    assert causes(DeviceStatus.parse({})) == ()
    honest = {"attestation": {"accepted": False, "code": "eat.nonce", "at": "2026-01-02T03:05:05Z"}}
    assert causes(DeviceStatus.parse(honest)) == ()
    both = causes(DeviceStatus.parse({**HELD, **TWIN}))
    assert both == (Cause("BootIdMismatch", T), Cause("clone.seed", T + 60, shared=True))
    assert str(withheld(both, None, T + 90)) == "in quarantine since 2026-01-02T03:04:05Z: BootIdMismatch"
    twins = "two devices seem to share its identity, seen at 2026-01-02T03:05:05Z: clone.seed"
    assert str(withheld(both, T + 1, T + 90)) == twins, "released from the one, not from the other"


def test_rule_2_a_release_holds_for_what_began_before_it() -> None:
    by = causes(DeviceStatus.parse(HELD))
    assert withheld(by, T - 1, T + 90) is not None
    assert withheld(by, T + 1, T + 90) is None


def test_rule_3_a_release_from_the_future_ends_nothing_and_is_told_of() -> None:
    by = causes(DeviceStatus.parse(HELD))
    early = withheld(by, T + 7200, T + 90)
    assert str(early) == (
        "in quarantine since 2026-01-02T03:04:05Z: BootIdMismatch; spec.releaseFromQuarantine.at is 2026-01-02T05:04:05Z, "
        "which is yet to come: the release does nothing before (write the present time, in UTC)"
    )
    assert withheld(by, T + 7200, T + 7200) is None
    assert withheld((), T + 7200, T) is None, "a device that nothing withholds is free whatever is written"


times = st.floats(0, 4e9)


@given(since=times, released=times | st.none(), now=times)
def test_no_release_ends_what_began_later_or_acts_before_its_time(
    since: float, released: float | None, now: float
) -> None:
    free = withheld((Cause("X", since),), released, now) is None
    assert free == (released is not None and since <= released <= now)
