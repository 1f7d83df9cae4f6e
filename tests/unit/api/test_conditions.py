# SPDX-License-Identifier: Apache-2.0
"""Conditions: one per type, a transition time that means something, and no going back to an older spec."""

from hypothesis import given
from hypothesis import strategies as st

from flashjob.api.conditions import find_condition, is_true, set_condition
from flashjob.api.meta import Condition

T1, T2 = "2026-01-02T03:04:05Z", "2026-01-02T03:05:00Z"


def test_rule_1_a_new_condition_is_added_and_the_order_stays() -> None:
    conditions = set_condition((), "Validated", True, "Accepted", "", 1, T1)
    conditions = set_condition(conditions, "Finished", False, "InProgress", "", 1, T1)
    conditions = set_condition(conditions, "Validated", False, "Bad", "", 1, T2)
    assert [condition.type for condition in conditions] == ["Validated", "Finished"]


def test_rule_1_duplicates_are_merged() -> None:
    (one,) = set_condition((), "Finished", True, "AllProven", "", 1, T1)
    assert len(set_condition((one, one), "Finished", True, "AllProven", "", 1, T1)) == 1


def test_rule_2_the_time_stays_while_the_status_stays() -> None:
    conditions = set_condition((), "Progressing", True, "InProgress", "1/3", 1, T1)
    (same,) = set_condition(conditions, "Progressing", True, "InProgress", "2/3", 1, T2)
    assert (same.message, same.last_transition_time) == ("2/3", T1)
    (changed,) = set_condition((same,), "Progressing", None, "Lost", "", 1, T2)
    assert (changed.status, changed.last_transition_time) == ("Unknown", T2)


def test_rule_3_an_older_generation_changes_nothing() -> None:
    conditions = set_condition((), "Validated", True, "Accepted", "", 2, T1)
    assert set_condition(conditions, "Validated", False, "Bad", "", 1, T2) == conditions


def test_a_long_message_is_shortened_to_what_the_schema_takes() -> None:
    (condition,) = set_condition((), "Failed", True, "SomeFailed", "x" * 5000, 1, T1)
    assert len(condition.message) == 1024
    assert Condition.parse(condition.dump()) == condition


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from([True, False, None]), st.integers(0, 5))))
def test_any_sequence_keeps_one_of_each_type(steps: list[tuple[str, bool | None, int]]) -> None:
    conditions: tuple[Condition, ...] = ()
    for number, (type_, status, generation) in enumerate(steps):
        before = find_condition(conditions, type_)
        conditions = set_condition(conditions, type_, status, "Why", "", generation, f"2026-01-02T03:04:{number:02d}Z")
        after = find_condition(conditions, type_)
        assert after is not None
        assert len({condition.type for condition in conditions}) == len(conditions)
        if before is not None:
            assert after.observed_generation >= before.observed_generation
            assert (after.last_transition_time != before.last_transition_time) == (after.status != before.status)
        assert is_true(conditions, type_) == (after.status == "True")
