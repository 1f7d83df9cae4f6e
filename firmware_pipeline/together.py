# SPDX-License-Identifier: Apache-2.0
"""What a registry is asked at the same time: questions do not wait for each other's answers, and transfers read, hash and
write side by side."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from firmware_pipeline.store import Progress

PARALLEL: Final = 4
T = TypeVar("T")
R = TypeVar("R")


def ask_together(ask: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`ask` of every item, in their order; the first error, in that order, is raised."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(ask, items))


@contextlib.contextmanager
def asked_meanwhile(ask: Callable[[T], R], items: Iterable[T]) -> Iterator[Iterator[R]]:
    """The same while the body runs; yields the answers, in the items' order. A body that fails waits for what is being
    asked, but nothing further is."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        try:
            yield pool.map(ask, items)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def transfer_together(
    act: Callable[[T, Progress], object], items: Iterable[T], progress: Callable[[T, int, int], None] | None
) -> None:
    """Run `act` for all items; the first failure, or an interruption, stops the others at their next bytes.

    Args:
        act: transfers one item, calling its second argument as progress(bytes done, bytes in total).
        items: what to transfer.
        progress: called from several threads as progress(item, bytes done, bytes in total).

    Raises:
        PipelineError: as `act`, the first one's.
    """
    stop = threading.Event()

    def run(item: T) -> None:
        def update(done: int, total: int) -> None:
            if stop.is_set():
                raise _Stopped
            if progress:
                progress(item, done, total)

        act(item, update)

    with ThreadPoolExecutor(PARALLEL) as pool:
        running = [pool.submit(run, item) for item in items]
        try:
            for done in running:
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Stopped(Exception):
    """A transfer gave up because another one failed."""
