# SPDX-License-Identifier: Apache-2.0
"""Times as text, at the edges: everywhere else they are seconds since the epoch, given by the caller."""

from datetime import UTC, datetime


def seconds(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 time.

    Raises:
        ValueError: not such a time.
    """
    return datetime.fromisoformat(stamp).timestamp()


def stamp(at: float) -> str:
    """RFC 3339 in UTC, whole seconds, as metav1.Time."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro(at: float) -> str:
    """RFC 3339 in UTC with microseconds, as metav1.MicroTime."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
