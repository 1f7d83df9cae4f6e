# SPDX-License-Identifier: Apache-2.0
"""The discovery handler that an Akri agent talks to: it serves Discover, and stays registered.

Rules (tests name them):

1. It serves first and registers second; after each registration sleeping Configurations are woken, because the agent
   does not.
2. Details that cannot be followed are INVALID_ARGUMENT, with a message that names the field, and so are discovery
   properties, for there are none that would be; nothing else is. Where details want mDNS and its library is not
   installed, that is FAILED_PRECONDITION: the agent asks again later.
3. The first list comes once every place was looked at, or after a bounded time, even when it is empty; then a list comes
   only when it differs from the last, whole, and not too soon after it (`gap`): the agent writes every Instance anew at
   each one.
4. A list that the agent could not take as one message is cut at `MAX_LIST_BYTES`, by id, and an error says so.
5. When it ends it says nothing: an empty list would delete every Instance.
6. Of several handlers for one transport in one directory, as in a rolling update, one serves and the others wait for
   its end: it would take their socket along.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from attestation.discovery import mdns
from attestation.discovery.akri_v0 import discovery_pb2, discovery_pb2_grpc
from attestation.discovery.details import Details, DetailsError, Transport, check_properties, parse_details
from attestation.discovery.entries import Entry
from attestation.discovery.registration import Registration, Served, Unusable, served, stay_registered
from attestation.discovery.scanner import Scanner

GAP_SECONDS: Final = 0.2
GAP_SECONDS_PER_ENTRY: Final = 0.002
MAX_LIST_BYTES: Final = 4_000_000
"""An agent's gRPC takes 4 MiB."""
_MAX_PATH_BYTES: Final = 107
"""What a UNIX socket's address takes."""
_WAIT_SECONDS: Final = 0.5
_FRAME_BYTES: Final = 6
"""Tag and length of one entry in a list, at most."""

_log = logging.getLogger(__name__)


class DiscoveryHandler:
    """One handler: `run` serves until it is cancelled.

    Args:
        scanner: knows what is to be listed; `run` runs it.
        directory: where the agent's registration socket is; the handler's own socket is made beside it.
        wake: awaited after each registration, to wake Configurations.
        wanted: what Configurations ask of this handler now.
    """

    def __init__(
        self,
        scanner: Scanner,
        directory: Path,
        wake: Callable[[], Awaitable[None]],
        wanted: Callable[[], Set[Details]] = frozenset,
    ) -> None:
        self._scanner = scanner
        self._directory = directory
        self._wake, self._wanted = wake, wanted
        self.socket = directory / f"{scanner.transport.handler_name}.sock"

    async def run(self) -> None:
        """Rule 1, until cancelled (rule 5). Raises Unusable: the directory cannot be used."""
        if len(os.fsencode(self.socket)) > _MAX_PATH_BYTES:
            raise Unusable(f"{self.socket}: a socket's path has at most {_MAX_PATH_BYTES} bytes")
        async with _alone(self.socket.with_suffix(".lock")):
            await self._serve()

    async def _serve(self) -> None:
        transport: Transport = self._scanner.transport
        server = grpc.aio.server()
        discovery_pb2_grpc.add_DiscoveryHandlerServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        try:
            self.socket.unlink(missing_ok=True)  # of an earlier run that was killed
            server.add_insecure_port(f"unix:{self.socket}")
        except (OSError, RuntimeError) as error:
            raise Unusable(f"{self.socket}: no socket can be made there: {error}") from error
        await server.start()
        registration = Registration(transport.handler_name, self.socket, transport.shared)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._scanner.run())
                group.create_task(stay_registered(self._directory, registration, self._wake, self._state))
        finally:
            await server.stop(None)

    def _state(self) -> Served:
        return served(frozenset(filter(_can_follow, self._wanted())), self._scanner.asked)

    async def Discover(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The rpc: one stream of whole lists for one Configuration."""
        try:
            details = parse_details(request.discovery_details, self._scanner.transport)
            check_properties(request.discovery_properties)
        except DetailsError as error:
            _log.warning("%s", error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not _can_follow(details):
            message = "network.mdns: the library zeroconf is not installed; install flashjob[mdns]"
            _log.error("%s", message)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        subscription = self._scanner.subscribe(details)
        try:
            await subscription.settled()
            last: tuple[Entry, ...] | None = None
            while True:
                subscription.changed.clear()
                entries = subscription.entries()
                if entries != last:
                    last = entries
                    _log.info("list: %s for %s: %d", details.list, ", ".join(details.applications) or "any", len(last))
                    yield _response(entries)
                await asyncio.sleep(gap(len(entries)))
                await subscription.changed.wait()
        finally:
            subscription.close()


def _can_follow(details: Details) -> bool:
    """Whether what they need is installed."""
    return mdns.available() or not details.mdns


def gap(entries: int) -> float:
    """Seconds between a list and the next one (rule 3)."""
    return max(GAP_SECONDS, entries * GAP_SECONDS_PER_ENTRY)


@asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """Rule 6: holds the lock. Raises Unusable."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unusable(f"{error}: no socket can be made there") from error
    try:
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    _log.warning("%s: another handler of this name serves here; waiting for its end", path)
                said = True
                await asyncio.sleep(_WAIT_SECONDS)
        yield
    finally:
        os.close(lock)


def _response(entries: Sequence[Entry]) -> Any:
    """The whole list as a message (rule 4)."""
    devices: list[Any] = []
    size = 0
    for entry in entries:
        device = _device(entry)
        size += device.ByteSize() + _FRAME_BYTES
        if size > MAX_LIST_BYTES:
            left = len(entries) - len(devices)
            _log.error(
                "%d entries are too many for one list, %d are left out; narrow `applications`", len(entries), left
            )
            break
        devices.append(device)
    return discovery_pb2.DiscoverResponse(devices=devices)


def _device(entry: Entry) -> Any:
    specs = []
    if entry.node is not None:
        inside, outside = entry.node
        specs = [discovery_pb2.DeviceSpec(container_path=inside, host_path=outside, permissions=entry.rights)]
    return discovery_pb2.Device(id=entry.id, properties=dict(entry.properties), device_specs=specs)
