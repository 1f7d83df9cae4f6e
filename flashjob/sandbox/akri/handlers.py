# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the discovery gRPC: the registration socket, and streams of device lists from handlers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from attestation.discovery.akri_v0 import discovery_pb2, discovery_pb2_grpc

from .instances import Found

_log = logging.getLogger(__name__)
SOCKET_NAME: Final = "agent-registration.sock"
_AUTHORITY: Final = "[::1]:50051"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registered handler; name and address identify it, a registration of the same two replaces it."""

    name: str
    address: str
    network: bool
    shared: bool

    @property
    def key(self) -> str:
        """Its identity."""
        return f"{self.name}@{self.address}"


class HandlerUnavailable(Exception):
    """A handler could not be reached or ended its stream; `refused`: it does not accept the discovery details."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class Registry:
    """Handlers known now, in memory only: a restarted agent knows none."""

    def __init__(self, on_registered: Callable[[Endpoint], None]) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._on_registered = on_registered

    def of(self, name: str) -> list[Endpoint]:
        """All endpoints of one handler name."""
        return [endpoint for endpoint in self._endpoints.values() if endpoint.name == name]

    def drop(self, endpoint: Endpoint) -> None:
        """Forget an endpoint that cannot be reached."""
        self._endpoints.pop(endpoint.key, None)

    async def RegisterDiscoveryHandler(self, request: Any, context: Any) -> Any:
        """The rpc: remember the endpoint."""
        network = request.endpoint_type == discovery_pb2.RegisterDiscoveryHandlerRequest.NETWORK
        if not request.name or not request.endpoint or (network and not request.endpoint.startswith("http://")):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "name and endpoint are needed, NETWORK as http://host:port"
            )
        endpoint = Endpoint(request.name, request.endpoint, network, request.shared)
        self._endpoints[endpoint.key] = endpoint
        _log.info("handler %s registered (shared: %s)", endpoint.key, endpoint.shared)
        self._on_registered(endpoint)
        return discovery_pb2.Empty()


async def serve_registration(directory: Path, registry: Registry) -> Any:
    """Serve v0.Registration on the directory's socket, replacing the one of an earlier agent; returns the server."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / SOCKET_NAME
    path.unlink(missing_ok=True)
    server = grpc.aio.server()
    discovery_pb2_grpc.add_RegistrationServicer_to_server(registry, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    return server


async def discover(
    endpoint: Endpoint, details: str, properties: Mapping[str, bytes | None]
) -> AsyncIterator[tuple[Found, ...]]:
    """Open Discover and yield every complete list.

    Raises:
        HandlerUnavailable: however the stream ends.
    """
    target = endpoint.address.removeprefix("http://") if endpoint.network else f"unix:{endpoint.address}"
    # A connection of its own: what failed to connect a moment ago must not be waited for, nor is it by the real agent.
    options: tuple[tuple[str, Any], ...] = (("grpc.use_local_subchannel_pool", 1),)
    if not endpoint.network:
        options += (("grpc.default_authority", _AUTHORITY),)
    request = discovery_pb2.DiscoverRequest(
        discovery_details=details,
        discovery_properties={name: discovery_pb2.ByteData(vec=value) for name, value in properties.items()},
    )
    try:
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = discovery_pb2_grpc.DiscoveryHandlerStub(channel)  # type: ignore[no-untyped-call]
            async for answer in stub.Discover(request):
                yield tuple(Found(device.id, dict(device.properties), endpoint.shared) for device in answer.devices)
    except grpc.aio.AioRpcError as error:
        refused = error.code() is grpc.StatusCode.INVALID_ARGUMENT
        raise HandlerUnavailable(f"{endpoint.key}: {error.code().name}: {error.details()}", refused=refused) from error
    raise HandlerUnavailable(f"{endpoint.key}: the handler ended the stream")
