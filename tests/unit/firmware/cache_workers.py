# SPDX-License-Identifier: Apache-2.0
"""What the processes of the cache's tests do; imported by a fork server, so each costs little."""

import multiprocessing
import os
import resource
from io import BytesIO
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from firmware_pipeline.api import open_chip, open_store, read_layer
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import CachedStore
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.oci import Descriptor
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.registry import RegistryStore
from firmware_pipeline.signing import release  # noqa: F401 - loaded before rights to read the sources are given up

NOBODY = 65534
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def registry_store(host: str) -> RegistryStore:
    return RegistryStore(parse_reference(f"{host}/team/porch:1"), ClientOptions(plain_http=True))


def pull(host: str, root: Path, wanted: list[Descriptor], barrier: Barrier | None, report: Connection) -> None:
    """Ask a cache for content; report each origin, or the error's reason and words."""
    store, cache = registry_store(host), BlobCache(root)
    if barrier is not None:
        barrier.wait()
    try:
        report.send([cache.ensure(one, store.receive_blob, BytesIO()).value for one in wanted])
    except PipelineError as error:
        report.send((error.reason.value, error.message))


def pull_telling(host: str, root: Path, wanted: Descriptor, report: Connection) -> None:
    """Report every step of a download."""
    BlobCache(root).ensure(wanted, registry_store(host).receive_blob, BytesIO(), lambda done, _: report.send(done))


def pull_as_nobody(host: str, root: Path, wanted: list[Descriptor], report: Connection) -> None:
    """As somebody who may only read."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    pull(host, root, wanted, None, report)


def pull_on_a_full_disk(host: str, root: Path, wanted: Descriptor, limit: int, report: Connection) -> None:
    """No file may grow beyond `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    pull(host, root, [wanted], None, report)


def open_and_fetch(where: str, root: Path, digest: str, report: Connection) -> None:
    """One chip through a cache that may only be read; report its notes and its traffic."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    else:
        root.chmod(0o555)
    notes: list[str] = []
    store = CachedStore(open_store(where, ClientOptions(plain_http=True)), BlobCache(root), note=notes.append)
    for layer in open_chip(store, digest, "esp32s3").layers:
        read_layer(store, layer)
    report.send((notes, store.traffic.dump()))


def pull_often(host: str, roots: list[Path], wanted: list[Descriptor], count: int, report: Connection) -> None:
    """So many pulls, each as if by a new process; the caches take turns."""
    for number in range(count):
        store, cache = registry_store(host), BlobCache(roots[number % len(roots)])
        for one in wanted:
            cache.ensure(one, store.receive_blob, BytesIO())
    report.send(count)
