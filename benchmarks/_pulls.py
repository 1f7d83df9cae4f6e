# SPDX-License-Identifier: Apache-2.0
"""What the processes of the cache's benchmark do, and a proxy that counts what they ask and what they get."""

from __future__ import annotations

import multiprocessing
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from firmware_pipeline import api
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import CachedStore, MirroredStore, mirror_store
from firmware_pipeline.oci import Descriptor
from firmware_pipeline.registry import RegistryStore  # noqa: F401 - loaded once, in the fork server
from firmware_pipeline.store import ArtifactStore

CONTEXT: Final = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
_PLAIN: Final = api.ClientOptions(plain_http=True)
_GET: Final = re.compile(rb"^GET \S+/(?:blobs|manifests)/(\S+) HTTP/1\.1\r$", re.MULTILINE)
_PIECE: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Pinned:
    """One chip of an artifact as a flashing pod is told it."""

    repository: str
    manifest: str
    chip: str


def fetch_app(store: ArtifactStore, pinned: Pinned) -> int:
    """What a flashing pod fetches; bytes of the application."""
    return len(api.read_layer(store, api.open_manifest(store, pinned.manifest, pinned.chip).app))


def pull_many(pinned: Pinned, caches: list[Path], count: int, first: int, report: Connection) -> None:
    """So many pulls, one after another, each as if by a new pod; the nodes take turns."""
    done = 0
    for number in range(first, first + count):
        behind = api.open_store(pinned.repository, _PLAIN)
        fetch_app(CachedStore(behind, BlobCache(caches[number % len(caches)])), pinned)
        done += 1
    report.send(done)


def pull_mirrored(pinned: Pinned, mirrors: list[str], count: int, first: int, report: Connection) -> None:
    """The same by pods that keep nothing, each through the mirror of its node."""
    for number in range(first, first + count):
        behind = api.open_store(pinned.repository, _PLAIN)
        near = mirror_store(mirrors[number % len(mirrors)], pinned.repository)
        fetch_app(MirroredStore(behind, near), pinned)
    report.send(count)


def ensure_one(repository: str, root: Path, wanted: Descriptor, barrier: Barrier, report: Connection) -> None:
    """One blob through a cache, together with everybody else."""
    store, cache = api.open_store(repository, _PLAIN), BlobCache(root)
    barrier.wait()
    report.send(cache.ensure(wanted, store.receive_blob, BytesIO()).value)


class CountingProxy:
    """Passes TCP connections on to a registry. Use as a context manager.

    Attributes:
        received: bytes that the registry sent, headers included.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Lock()
        self._sent: list[bytearray] = []
        self.received = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def reset(self) -> None:
        """Count from zero. No request may be under way."""
        with self._lock:
            self.received = 0
            for asked in self._sent:
                asked.clear()

    def gets(self) -> Counter[str]:
        """GET requests by what they asked for: digest or tag."""
        with self._lock:
            return Counter(match.decode() for asked in self._sent for match in _GET.findall(bytes(asked)))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            asked = bytearray()
            with self._lock:
                self._sent.append(asked)
            threading.Thread(target=self._pass, args=(client, server, asked), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, None), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, asked: bytearray | None) -> None:
        try:
            while piece := source.recv(_PIECE):
                with self._lock:
                    if asked is None:
                        self.received += len(piece)
                    else:
                        asked += piece
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()
