# SPDX-License-Identifier: Apache-2.0
"""Conditions as the API conventions want them (metav1.Condition): one per type, and a time that means something.

Rules (tests name them):

1. There is at most one condition of a type; the order of the others does not change.
2. lastTransitionTime changes when, and only when, status changes.
3. observedGeneration never goes back: what was judged on a newer spec is not overwritten.
"""

from collections.abc import Iterable

from .meta import Condition

MESSAGE_LIMIT = 1024


def set_condition(
    conditions: Iterable[Condition],
    type_: str,
    status: bool | None,
    reason: str,
    message: str,
    generation: int,
    now: str,
) -> tuple[Condition, ...]:
    """The conditions with this one set.

    Args:
        conditions: as they are.
        type_: which one.
        status: True, False, or None for Unknown.
        reason: why, in one word.
        message: why, for people; shortened to 1,024 characters.
        generation: of the spec that was judged.
        now: RFC 3339 in UTC.
    """
    wanted = Condition(
        type=type_,
        status="Unknown" if status is None else "True" if status else "False",
        reason=reason,
        message=message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…",
        last_transition_time=now,
        observed_generation=generation,
    )
    out: list[Condition] = []
    found = False
    for known in conditions:
        if known.type != type_:
            out.append(known)
        elif not found:
            found = True
            out.append(_merged(known, wanted))
    return tuple(out if found else [*out, wanted])


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """The condition of this type, or None."""
    return next((known for known in conditions if known.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition of this type exists and is True."""
    found = find_condition(conditions, type_)
    return found is not None and found.status == "True"


def _merged(known: Condition, wanted: Condition) -> Condition:
    if wanted.observed_generation < known.observed_generation:
        return known
    if wanted.status == known.status:
        return wanted.model_copy(update={"last_transition_time": known.last_transition_time})
    return wanted
