# SPDX-License-Identifier: Apache-2.0
"""A work queue by key: what is queued twice is done once, and never twice at a time.

Rules (tests name them):

1. A key is worked on by one worker at a time; added meanwhile, it is worked on once more afterwards.
2. Between two starts of the same key lies at least the window: a storm of events becomes a few runs.
3. `add_after` keeps the earliest time asked for; `add` brings it to now.
4. Work that raises is logged and tried again, with a delay that doubles from 1 s to 60 s until it succeeds.
   A conflict (somebody wrote first) is tried again after the window.
5. What is no Exception (cancellation, the death of the process under test) ends the queue.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, Generic, TypeVar

from .kubeapi import ApiError

K = TypeVar("K", bound=Hashable)
_FIRST_RETRY_SECONDS: Final = 1.0
_LAST_RETRY_SECONDS: Final = 60.0
_log = logging.getLogger(__name__)


class WorkQueue(Generic[K]):
    """Run `run()` as a task; add keys from anywhere in the event loop.

    Args:
        work: what to do for a key; returns seconds after which to do it again, or None.
        workers: how many keys are worked on at once.
        window_seconds: rule 2.
    """

    def __init__(
        self, work: Callable[[K], Awaitable[float | None]], *, workers: int = 4, window_seconds: float = 0.2
    ) -> None:
        self._work = work
        self._workers = workers
        self._window = window_seconds
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0
        self._running: dict[K, asyncio.Task[None]] = {}
        self._again: dict[K, float] = {}
        self._started: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._fatal: BaseException | None = None

    def add(self, key: K) -> None:
        """Work on this key soon."""
        self.add_after(key, 0)

    def add_after(self, key: K, seconds: float) -> None:
        """Work on this key in so many seconds, or earlier if that was asked for before."""
        at = asyncio.get_running_loop().time() + max(seconds, 0)
        if key in self._running:
            self._again[key] = min(at, self._again.get(key, at))
        else:
            self._schedule(key, at)

    def forget(self, key: K) -> None:
        """Drop what is planned for a key that no longer exists."""
        self._due.pop(key, None)
        self._again.pop(key, None)
        self._failures.pop(key, None)
        self._started.pop(key, None)
        self._settle()

    async def idle(self) -> None:
        """Wait until nothing runs and nothing is due before later."""
        await self._idle.wait()

    async def run(self) -> None:
        """Work until cancelled; then running work is cancelled and waited for."""
        try:
            while self._fatal is None:
                self._wake.clear()
                timeout = self._start_due()
                try:
                    async with asyncio.timeout(timeout):
                        await self._wake.wait()
                except TimeoutError:
                    continue
            raise self._fatal
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _schedule(self, key: K, at: float) -> None:
        if key in self._started:
            at = max(at, self._started[key] + self._window)
        if key in self._due and self._due[key] <= at:
            return
        self._due[key] = at
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, key))
        self._settle()
        self._wake.set()

    def _start_due(self) -> float | None:
        """Start what is due; returns seconds until the next may be, None if only an event can tell."""
        now = asyncio.get_running_loop().time()
        while self._heap and len(self._running) < self._workers:
            at, _, key = self._heap[0]
            if self._due.get(key) != at:
                heapq.heappop(self._heap)
                continue
            if at > now:
                return at - now
            heapq.heappop(self._heap)
            del self._due[key]
            self._started[key] = now
            task = asyncio.create_task(self._do(key))
            self._running[key] = task
            task.add_done_callback(self._finished(key))
        return None

    async def _do(self, key: K) -> None:
        try:
            again = await self._work(key)
        except ApiError as error:
            if error.conflict:
                again = self._window
            else:
                again = self._failed(key, error)
        except Exception as error:  # noqa: BLE001 - rule 4; it is logged with its traceback
            again = self._failed(key, error)
        else:
            self._failures.pop(key, None)
        if again is not None:
            self.add_after(key, again)

    def _failed(self, key: K, error: Exception) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        wait = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * float(2 ** min(count - 1, 16)))
        transient = isinstance(error, ApiError) and error.transient
        _log.warning("work on %s failed, again in %.0f s: %s", key, wait, error, exc_info=None if transient else error)
        return wait

    def _finished(self, key: K) -> Callable[["asyncio.Task[Any]"], None]:
        def done(task: "asyncio.Task[Any]") -> None:
            del self._running[key]
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fatal = error
            at = self._again.pop(key, None)
            if at is not None:
                self._schedule(key, at)
            self._settle()
            self._wake.set()

        return done

    def _settle(self) -> None:
        soon = asyncio.get_running_loop().time() + self._window
        if self._running or any(at <= soon for at in self._due.values()):
            self._idle.clear()
        else:
            self._idle.set()
