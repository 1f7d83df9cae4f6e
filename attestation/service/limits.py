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
import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from attestation.service.problems import Problem, Refused

P = ParamSpec("P")
R = TypeVar("R")
BUSY_RETRY_SECONDS: Final = 1
_BATCH: Final = 8
_Call: TypeAlias = tuple[asyncio.Future[Any], Callable[[], Any]]
_Finished: TypeAlias = tuple[asyncio.Future[Any], Any, Exception | None]


class Lane:
    """Threads with a bounded queue (rule 1).

    Verdicts are short, and waking the event loop costs a fifth of one. So a thread hands over what it finished when
    nothing waits for it, or after `_BATCH` calls: an idle service answers at once, a busy one in small batches. Of a
    general executor each call would wake the loop. Verdicts in the event loop itself cost as much CPU, and there a slow
    disk would hold up everybody, probes included.

    Args:
        name: for messages and thread names.
        workers: threads.
        queue: most calls that wait for one.
    """

    def __init__(self, name: str, *, workers: int, queue: int) -> None:
        self._name, self._most = name, workers + queue
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._finished: deque[_Finished] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [Thread(target=self._work, name=f"attest-{name}-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()
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
        self._loop = loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self.load += 1
        try:
            self._calls.put((answer, partial(call, *args, **kwargs)))
            return await answer
        finally:
            self.load -= 1

    def close(self) -> None:
        """End the threads once what waits has ended."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        held = 0
        while True:
            given = self._calls.get()
            if given is None:
                self._wake()
                return
            answer, call = given
            try:
                self._finished.append((answer, call(), None))
            except Exception as error:  # noqa: BLE001  whatever it is, it is raised again where it was called for
                self._finished.append((answer, None, error))
            held += 1
            if held == _BATCH or self._calls.empty():
                held = 0
                self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        while self._finished:
            answer, result, error = self._finished.popleft()
            if answer.done():
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)


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
