# SPDX-License-Identifier: Apache-2.0
"""How long an attempt waits, and when it asks again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from flashjob.flasher.transports.base import problem
from flashjob.wire.reasons import Reason
from flashjob.wire.refusal import Refused

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@contextlib.asynccontextmanager
async def limit(seconds: float, reason: Reason) -> AsyncIterator[None]:
    """What is not done after `seconds` fails with `reason`. Raises FlashJobError."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise problem(reason, f"not done after {seconds:g} s") from error


async def twice(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask; and once more, with fresh evidence, where the judge says that this may do.

    Raises:
        FlashJobError: what asking ended with, Refused included.
    """
    try:
        return await ask()
    except Refused as refused:
        if not refused.problem.retryable:
            raise
        log.warning("asked again with fresh evidence: %s", refused.message)
    return await ask()
