# SPDX-License-Identifier: Apache-2.0
"""Registering with the Akri agent of this node, again and again.

Rules (tests name them):

1. The agent forgets everybody when it restarts, and nothing says so but its socket, which is another file then: it is
   looked at every second, and only another file leads to another registration (each one makes the agent open one more
   Discover per Configuration).
2. Where an agent does not answer, or refuses, it is tried again after 0.2 s, 0.4 s and so on, at most 10 s.
3. An agent that could not reach the handler once, for one Configuration, forgets it without a word, for all: while
   Configurations want this handler and no stream is open, it registers again every `LONELY_SECONDS`; where some have
   streams, after as long, then after twice as long each time, for it costs each of these one more stream.
4. The agent's HTTP/2 refuses a socket path as authority: the channel names ``localhost``.
5. That there is no agent is logged, once, and so is what keeps its socket from being looked at.
6. Where the handler's own socket is gone no agent can reach it, ever: Unusable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

import grpc

from attestation.discovery.akri_v0 import discovery_pb2, discovery_pb2_grpc
from attestation.discovery.details import Details

SOCKET_NAME: Final = "agent-registration.sock"
LOOK_SECONDS: Final = 1.0
LONELY_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 0.2
_LAST_PAUSE_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 10.0
_OPTIONS: Final = (("grpc.default_authority", "localhost"),)

_log = logging.getLogger(__name__)


class Served(Enum):
    """Which of the Configurations that want this handler have a stream."""

    ALL = auto()
    SOME = auto()
    NONE = auto()


def served(wanted: Set[Details], streams: Set[Details]) -> Served:
    """Pure. Configurations that ask for the same count as one.

    Args:
        wanted: what Configurations ask for now.
        streams: what open streams were asked for. An agent goes by what a Configuration said when its stream was opened,
            so that a stream that nobody wants any more may well be that of a Configuration that was edited since.
    """
    if len(wanted - streams) <= len(streams - wanted):
        return Served.ALL
    return Served.SOME if streams else Served.NONE


class Unusable(Exception):
    """The agent's directory cannot be used, or not any longer; the message says why."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What the agent is told.

    Args:
        name: what Configurations call this handler.
        endpoint: path of the socket on which it serves Discover.
        shared: whether every node sees the same devices.
    """

    name: str
    endpoint: Path
    shared: bool


async def stay_registered(
    directory: Path,
    registration: Registration,
    registered: Callable[[], Awaitable[None]],
    state: Callable[[], Served] = lambda: Served.ALL,
) -> None:
    """Register, and register again with each new agent, until cancelled.

    Args:
        directory: where the agent's socket is, or will be.
        registration: what to tell.
        registered: awaited after each registration.
        state: of the Configurations that want this handler (rule 3).

    Raises:
        Unusable: rule 6.
    """
    socket = directory / SOCKET_NAME
    known: tuple[int, int] | None = None
    pause, trouble = _FIRST_PAUSE_SECONDS, ""
    lonely, patience = 0.0, LONELY_SECONDS
    while True:
        if not registration.endpoint.is_socket():
            raise Unusable(f"{registration.endpoint}: this handler's own socket was removed; start this program again")
        found, before = None, trouble
        try:
            found, trouble = _identity(socket), ""
        except OSError as error:
            trouble = str(error)
            if trouble != before:
                _log.warning("no Akri agent here: %s; waiting for it", error)
        now = state() if found == known and known is not None else Served.ALL
        if now is not Served.SOME:
            patience = LONELY_SECONDS
        lonely = 0.0 if now is Served.ALL else lonely + LOOK_SECONDS
        if lonely > patience:
            _log.warning("Configurations want %s, but the agent does not ask for it", registration.name)
            known, lonely, patience = None, 0.0, 2 * patience
        if found is None or found == known:
            await asyncio.sleep(LOOK_SECONDS)
            continue
        try:
            await _register(socket, registration)
        except grpc.aio.AioRpcError as error:
            _log.warning("%s: %s: %s; next try in %.1f s", socket, error.code().name, error.details(), pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)
            continue
        known, pause = found, _FIRST_PAUSE_SECONDS
        _log.info("registered with %s as %s", socket, registration.name)
        await registered()


async def _register(socket: Path, registration: Registration) -> None:
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        stub = discovery_pb2_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]
        request = discovery_pb2.RegisterDiscoveryHandlerRequest(
            name=registration.name,
            endpoint=str(registration.endpoint),
            endpoint_type=discovery_pb2.RegisterDiscoveryHandlerRequest.UDS,
            shared=registration.shared,
        )
        await stub.RegisterDiscoveryHandler(request, timeout=_CALL_SECONDS)


def _identity(socket: Path) -> tuple[int, int]:
    """What tells one agent's socket from the next one's. Raises OSError."""
    status = socket.stat()
    return status.st_ino, status.st_ctime_ns
