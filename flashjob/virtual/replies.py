# SPDX-License-Identifier: Apache-2.0
"""What a virtual device answers: a reply, or a refusal with the protocol's code."""

from __future__ import annotations

from dataclasses import dataclass

from attestation import device_protocol as dp
from attestation.device_protocol import ErrorCode


class Refusal(Exception):
    """A request that the device refuses, with the protocol's code."""

    def __init__(self, code: ErrorCode, title: str, *, next_offset: int | None = None) -> None:
        super().__init__(f"{int(code)} {code.name}: {title}")
        self.code = code
        self.title = title
        self.next_offset = next_offset


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. The transport sends it, then resets the device if `reboot` says so; body None = send nothing at all."""

    status: int
    body: bytes | None
    reboot: bool = False

    @classmethod
    def refusal(cls, refusal: Refusal) -> Reply:
        """The answer that a refusal becomes."""
        body = dp.encode_error(refusal.code, refusal.title[:100], next_offset=refusal.next_offset)
        return cls(dp.HTTP_STATUS[refusal.code], body)
