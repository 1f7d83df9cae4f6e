# SPDX-License-Identifier: Apache-2.0
"""Run one coroutine as a program: logs to stderr, ends cleanly on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine


async def run_until_terminated(work: Coroutine[None, None, None]) -> int:
    """Run `work` to its end (exit code 1: such a program has none) or until a signal cancels it (exit code 0)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return 0
    return 1
