# SPDX-License-Identifier: Apache-2.0
"""The one error type of the `flashjob` package."""

from __future__ import annotations


class FlashJobError(Exception):
    """A failure that a person can act on.

    Args:
        reason: stable CamelCase code, as shown in conditions, results and metrics.
        message: what happened, where and why.
        next_step: what to do about it; may be empty only where nothing can be done.
    """

    def __init__(self, reason: str, message: str, next_step: str = "") -> None:
        super().__init__(reason, message, next_step)
        self.reason = reason
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        text = f"{self.reason}: {self.message}"
        return f"{text}. Next: {self.next_step}" if self.next_step else text
