# SPDX-License-Identifier: Apache-2.0
"""Downgrades: the rules by number, and an order of versions that never guesses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.downgrade import Installed, Offered, Outcome, compare_versions, judge
from firmware_pipeline.errors import Reason

PASSED, REFUSED, ALLOWED, UNDECIDED = Outcome.PASSED, Outcome.REFUSED, Outcome.ALLOWED, Outcome.UNDECIDED


def offered(secure_version: int = 2, sequence: int | None = 20, version: str = "2.1.0") -> Offered:
    return Offered(secure_version, sequence, version, "porch-sensor")


@pytest.mark.parametrize(
    ("installed", "allow", "expected"),
    [
        (Installed(), False, [UNDECIDED, UNDECIDED, UNDECIDED]),
        (Installed(2, 20, "2.1.0"), False, [PASSED, PASSED, UNDECIDED]),
        (Installed(3, 20), False, [REFUSED, PASSED, UNDECIDED]),
        (Installed(3, 20), True, [REFUSED, PASSED, UNDECIDED]),  # nothing lifts rule 1
        (Installed(1, 21, "1.0"), False, [PASSED, REFUSED, UNDECIDED]),  # the sequence decides, not the version
        (Installed(1, 21), True, [PASSED, ALLOWED, UNDECIDED]),
        (Installed(None, None, "2.2"), False, [UNDECIDED, UNDECIDED, REFUSED]),
        (Installed(None, None, "2.2"), True, [UNDECIDED, UNDECIDED, ALLOWED]),
        (Installed(None, None, "2.0.9"), False, [UNDECIDED, UNDECIDED, PASSED]),
        (Installed(None, None, "9.0", "gate"), False, [UNDECIDED, UNDECIDED, UNDECIDED]),
        (Installed(None, None, "9.0", "porch-sensor"), False, [UNDECIDED, UNDECIDED, REFUSED]),
        (Installed(None, None, "2.1.0-rc.1"), False, [UNDECIDED, UNDECIDED, UNDECIDED]),
        (Installed(None, None, "1d4f0c3"), False, [UNDECIDED, UNDECIDED, UNDECIDED]),
    ],
)
def test_rules(installed: Installed, allow: bool, expected: list[Outcome]) -> None:
    verdict = judge(offered(), installed, allow_downgrade=allow)
    assert [finding.outcome for finding in verdict.findings] == expected
    assert [finding.rule for finding in verdict.findings] == [1, 2, 3]
    assert [f.reason for f in verdict.refusals] == [f.reason for f in verdict.findings if f.outcome is REFUSED]
    assert [f.to_error() is not None for f in verdict.findings] == [outcome is REFUSED for outcome in expected]


def test_without_a_sequence_of_ones_own_the_version_decides() -> None:
    verdict = judge(offered(sequence=None), Installed(None, 7, "2.2"))
    assert [finding.reason for finding in verdict.refusals] == [Reason.DowngradeNotAllowed]
    assert verdict.refusals[0].rule == 3
    assert verdict.decided
    assert not judge(offered(sequence=None), Installed(2, 7)).decided


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("1.0", "1.0.0", 0), ("v1.0", "1.0", 0), ("1.9", "1.10", -1), ("2", "1.9.9", 1), ("v2.9", "2.10.0", -1),
        ("1.4.0-12-gabc1234-dirty", "1.5.0", -1), ("1.5.0-rc.1", "1.4.9", 1),
        ("1.5.0-rc.1", "1.5.0", None), ("1.5.0-3-gabc1234", "1.5.0", None), ("1.5.0-rc.1", "1.5.0-rc.2", None),
        ("1.5.0-rc.1", "1.5.0-rc.1", 0), ("main", "main", 0), ("main", "1.0", None), ("", "1.0", None),
        ("1d4f0c3", "2.0", None), ("1.0 beta", "2.0", None), ("1..0", "2.0", -1), ("-1", "2", None),
        ("9999999999", "1", None), ("1.0\n", "2.0", None), ("١.0", "2.0", None),
    ],
)  # fmt: skip
def test_order_of_versions(one: str, other: str, expected: int | None) -> None:
    assert compare_versions(one, other) == expected
    assert compare_versions(other, one) == (None if expected is None else -expected)


VERSIONS = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"\Av?[0-9]{1,3}(\.[0-9]{1,3}){0,3}(-(rc\.[0-9]|[0-9]-gabc))?\Z"),
)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_the_order_is_one(a: str, b: str, c: str) -> None:
    ab, ba, bc, ac = (compare_versions(*p) for p in ((a, b), (b, a), (b, c), (a, c)))
    assert ab == (None if ba is None else -ba)
    assert compare_versions(a, a) == 0
    if ab is not None and bc is not None and ab < 0 and bc < 0:
        assert ac == -1


@given(
    st.builds(offered, st.integers(0, 40), st.none() | st.integers(0, 9), VERSIONS),
    st.builds(Installed, st.none() | st.integers(0, 40), st.none() | st.integers(0, 9), st.none() | VERSIONS),
)
def test_accepting_implies_that_nothing_known_goes_back(new: Offered, old: Installed) -> None:
    if judge(new, old).refusals:
        return
    assert old.secure_version is None or new.secure_version >= old.secure_version
    if new.sequence is not None and old.sequence is not None:
        assert new.sequence >= old.sequence
    elif old.version is not None:
        assert compare_versions(new.version, old.version) != -1
