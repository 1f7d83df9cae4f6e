# SPDX-License-Identifier: Apache-2.0
"""Messages for people: what and where, then what to do next, never longer than a status field may be."""

from typing import Final

from flashjob.wire.reasons import Reason, known

from .state import Refusal

LIMIT: Final = 1024


def with_next(code: str, message: str) -> str:
    """The message, with the reason's next step where it is known and not said yet."""
    reason = known(code)
    text = message or (reason.meaning if reason else code)
    if reason and reason.next_step not in ("", "nothing") and reason.next_step not in text:
        text = f"{text.rstrip('.')}. Next: {reason.next_step}"
    return text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"


def refuse(reason: Reason, message: str) -> Refusal:
    """A refusal whose message says what to do next."""
    return Refusal(reason.value, with_next(reason.value, message))
