# SPDX-License-Identifier: Apache-2.0
"""Why a request got no result: problem documents (RFC 9457) with a code that never changes its meaning.

What is wrong with *evidence* is never a problem document: that is a result, signed like any other.
"""

import json
from enum import StrEnum
from typing import Final, Self

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "tag:flashjob.dev,2026:problem:"


class Problem(StrEnum):
    """Codes; each with its HTTP status and its one line of explanation."""

    status: int
    doc: str

    def __new__(cls, value: str, status: int, doc: str) -> Self:
        member = str.__new__(cls, value)
        member._value_, member.status, member.doc = value, status, doc
        return member

    MALFORMED = "request.malformed", 400, "A field or parameter is missing, twice there, unknown, or not of its form."
    PATH = "request.path", 404, "There is no such path."
    METHOD = "request.method", 405, "The path does not take this method."
    SLOW = "request.slow", 408, "The body did not come in time."
    TOO_LARGE = "request.size", 413, "The body is larger than any evidence."
    MEDIA = "request.media", 415, "The body has another media type, or is compressed."
    DEVICE_UNKNOWN = "device.unknown", 404, "No device with this id is enrolled, so there is no nonce for it."
    POLICY_MISSING = "policy.missing", 409, "The device's policy is not there, so there is no nonce for it."
    RATE = "limit.rate", 429, "Too many requests about this device; Retry-After says when to come again."
    BUSY = "limit.busy", 503, "Too many requests wait already; Retry-After says when to come again."
    STORE = "store.unavailable", 503, "A store that must answer did not, or holds what cannot be used: no result."
    RECORDS = "records.unavailable", 503, "The audit log or the evidence record cannot be written: no result."
    INTERNAL = "internal", 500, "The service has a bug; its log says which."


class Refused(Exception):
    """A request that gets no result.

    Args:
        problem: the code.
        message: what was found, and what to do. Holds no secret.
        retry_after: seconds after which to come again; None says nothing.
    """

    def __init__(self, problem: Problem, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(f"{problem.value}: {message}")
        self.problem, self.message, self.retry_after = problem, message, retry_after

    def body(self) -> bytes:
        """The document."""
        content = {
            "type": TYPE_PREFIX + self.problem.value,
            "title": self.problem.doc,
            "status": self.problem.status,
            "detail": self.message,
            "code": self.problem.value,
        }
        return json.dumps(content).encode() + b"\n"
