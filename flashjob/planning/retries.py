# SPDX-License-Identifier: Apache-2.0
"""Which failures are tried again, and when.

1. Retried: transport, port, timeouts, registry, gateway, lost pods, a confirm that did not get through, a device whose
   first boot failed and that went back to what it ran, and an attempt that the job's pause met before its permit. The
   next attempt attests first, so a device that already proves the target is never written again.
2. Never retried: refusals, signatures, policy, and everything a device proved wrong (MeasurementMismatch, BootIdMismatch,
   evidence that does not hold). Trying again would not make it truer.
3. A reason that is not known here is not retried.
4. At most `limit` attempts after the first; the last attempt's reason is the task's reason. Being paused uses none up.
5. The wait before retry n is backoff * 2^(n-1), at most an hour.
6. A failure without any permit whose reason is a refusal ends as Rejected: nothing was written. All others end as Failed.
"""

from typing import Final

from flashjob.api.flashjob import Retries
from flashjob.wire.reasons import Reason

MAX_BACKOFF: Final = 3600.0
LAST_ATTEMPT: Final = 100
"""The highest number an attempt can have (FlashTask.status.attempt)."""

RETRIED: Final = frozenset(
    {
        Reason.PORT_NOT_FOUND,
        Reason.PORT_BUSY,
        Reason.PORT_SILENT,
        Reason.PORT_VANISHED,
        Reason.TRANSPORT_LOST,
        Reason.DEVICE_UNREACHABLE,
        Reason.WRITE_FAILED,
        Reason.VERIFY_FAILED,
        Reason.REGISTRY_UNAVAILABLE,
        Reason.GATEWAY_UNAVAILABLE,
        Reason.GATEWAY_UNREADY,
        Reason.PERMIT_REFUSED,
        Reason.PAUSED,
        Reason.NOT_ASSIGNED,
        Reason.START_TIMEOUT,
        Reason.FETCH_TIMEOUT,
        Reason.WRITE_TIMEOUT,
        Reason.ATTEST_TIMEOUT,
        Reason.CONFIRM_TIMEOUT,
        Reason.RESET_BEFORE_CONFIRM,
        Reason.WENT_BACK,
        Reason.SILENT_AFTER_WRITE,
        Reason.POD_FAILED,
        Reason.POD_LOST,
        Reason.STOPPED,
    }
)

FAILURES: Final = RETRIED | {Reason.RETRIES_EXHAUSTED, Reason.INTERNAL_ERROR, Reason.REDISCOVERY_TIMEOUT}
"""Not refusals, whether or not a byte was written."""


def retried(code: str) -> bool:
    """Rules 1 to 3."""
    return code in RETRIED


def attempts_left(attempt: int, retries: Retries, code: str) -> bool:
    """Rule 4: whether there is a next attempt after this one, which ended with `code`."""
    return attempt <= retries.limit or (code == Reason.PAUSED and attempt < LAST_ATTEMPT)


def next_start(attempt: int, ended_at: float, retries: Retries) -> float:
    """Rule 5: when the attempt after `attempt` may start."""
    return ended_at + min(float(retries.backoff_seconds) * 2.0 ** min(attempt - 1, 32), MAX_BACKOFF)


def refusal(code: str) -> bool:
    """Rule 6: whether the reason is a refusal."""
    return code not in FAILURES
