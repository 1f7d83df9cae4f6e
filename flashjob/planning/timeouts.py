# SPDX-License-Identifier: Apache-2.0
"""How long an attempt may take. All in seconds.

1. A pod that has no permit after start + fetch is given up: StartTimeout.
2. A pod as a whole may take start + fetch + write + boot + attest + confirm, then it ends by itself and says
   so; the kubelet ends it a reserve later.
3. A pod that still seems to run a margin after that is lost with its node: nobody waits for it longer.
4. A pod that vanished unseen may still write until its Lease was acquired + start + fetch + write + the margin ago.
5. A terminal pod's verdict may be seen later than its end, since they are two watches: the grace; it is shorter where
   the pod itself says that it failed.
6. A verdict is acted on when the pod has ended, or the grace after the verdict.
7. A state that lasts is written into status.waiting after a while, not at once.
"""

from typing import Final

from flashjob.wire.pod import Timeouts

RESERVE: Final = 30
MARGIN: Final = 60
GRACE: Final = 15
SETTLE: Final = 3
QUIET: Final = 10


def start_deadline(created_at: float, timeouts: Timeouts) -> float:
    """Rule 1."""
    return created_at + timeouts.start_seconds + timeouts.fetch_seconds


def active_deadline_seconds(timeouts: Timeouts) -> int:
    """Rule 2: activeDeadlineSeconds of the pod."""
    return timeouts.attempt_seconds + RESERVE


def lost_deadline(created_at: float, timeouts: Timeouts) -> float:
    """Rule 3."""
    return created_at + active_deadline_seconds(timeouts) + MARGIN


def unseen_deadline(acquired_at: float, timeouts: Timeouts) -> float:
    """Rule 4."""
    return acquired_at + timeouts.start_seconds + timeouts.fetch_seconds + timeouts.write_seconds + MARGIN
