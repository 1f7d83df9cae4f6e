# SPDX-License-Identifier: Apache-2.0
"""How much may be asked at once, and by whom: bounded lanes of threads, and a rate per device.

Rules (tests name them):

1. A lane has a fixed number of threads and a fixed number of places to wait; one more is refused at once
   (``limit.busy``), never queued without bound.
2. Verdicts on ES384 devices, about ten times as dear, have a lane of their own: they never hold up the others.
3. Each device may be judged `rate` times a second, and twice that at once after a quiet time (``limit.rate``). The
   memory for it is bounded; whoever was not seen for longest is forgotten, which gives a full measure again.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from attestation.service.problems import Problem, Refused

P = ParamSpec("P")
R = TypeVar("R")
BUSY_RETRY_SECONDS: Final = 1


class Lane:
    """Threads with a bounded queue (rule 1).

    Args:
        name: for messages and thread names.
        workers: threads.
        queue: most calls that wait for one.
    """

    def __init__(self, name: str, *, workers: int, queue: int) -> None:
        self._name, self._most = name, workers + queue
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=f"attest-{name}")
        self.load = 0
        """Calls that run or wait."""

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a call in a thread. Raises Refused, or what the call raises."""
        if self.load >= self._most:
            raise Refused(
                Problem.BUSY,
                f"{self.load} verdicts wait in the {self._name} lane: come again, or ask another replica",
                retry_after=BUSY_RETRY_SECONDS,
            )
        self.load += 1
        try:
            future = self._threads.submit(call, *args, **kwargs)
            return await asyncio.wrap_future(future)
        finally:
            self.load -= 1

    def close(self) -> None:
        """End the threads once what runs has ended."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class Rates:
    """Token buckets by key (rule 3). Pure: time is an argument.

    Args:
        rate: tokens per second; 0 limits nothing.
        capacity: most buckets that are remembered.
    """

    def __init__(self, rate: float, *, capacity: int = 65_536) -> None:
        self._rate, self._burst, self._capacity = rate, max(1.0, 2 * rate), capacity
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: bytes, *, now: float) -> None:
        """Take one token.

        Args:
            key: whose bucket.
            now: monotonic seconds.

        Raises:
            Refused: ``limit.rate``, with the whole seconds until there is one again.
        """
        if not self._rate:
            return
        level, since = self._buckets.get(key, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        self._buckets[key] = (level - 1 if level >= 1 else level, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        if level < 1:
            wait = math.ceil((1 - level) / self._rate)
            message = f"more than {self._rate:g} verdicts a second are asked for about this device"
            raise Refused(Problem.RATE, message, retry_after=wait)
