# SPDX-License-Identifier: Apache-2.0
"""The node cache against a real registry: bytes on the wire, and how often each digest is asked for."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks._pulls import CONTEXT, CountingProxy, Pinned, ensure_one, pull_many, pull_mirrored
from benchmarks.common import Report, main
from firmware_pipeline import api
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import CachedStore, Traffic
from firmware_pipeline.esp import builder
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.partitions import build_table
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.oci import Descriptor
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.store import Blob
from flashjob.sandbox import programs
from flashjob.sandbox.registry import Registry
from flashjob.sandbox.toolchain import build

CHIPS = ("esp32", "esp32s2", "esp32s3", "esp32c2", "esp32c3", "esp32c6", "esp32h2", "esp32p4")
CHIP = "esp32s3"
PROCESSES = 24
NODES = 3
MB = 1024 * 1024
PLAIN = api.ClientOptions(plain_http=True)


def measure(report: Report) -> None:
    """All of it, below a directory that is gone afterwards."""
    binary = build(programs.REGISTRY, os.environ)
    with (
        tempfile.TemporaryDirectory(prefix="flashjob-bench-") as folder,
        Registry.start(Path(folder) / "registry", binary=binary) as registry,
        CountingProxy(registry.host) as proxy,
    ):
        root = Path(folder)
        plans = [_plan(root / chip, chip, MB // 4 if report.smoke else MB) for chip in CHIPS]
        pushed = api.push(plans, f"{registry.host}/bench:1", signer=None, release=None, options=PLAIN)
        where = f"{proxy.host}/bench"
        _one_chip(report, proxy, f"{where}:1", root)
        manifest = next(chip.manifest_digest for chip in pushed.chips if chip.target == CHIP)
        _many_pulls(report, proxy, Pinned(f"{where}:1", manifest, CHIP), root)
        _one_blob(report, proxy, registry, f"{where}:1", root)


def _one_chip(report: Report, proxy: CountingProxy, where: str, root: Path) -> None:
    """One chip of eight, by tag, without a cache, then twice through one."""
    proxy.reset()
    pulled = api.pull(where, CHIP, root / "plain", keys=None, options=PLAIN)
    direct = proxy.received
    store = api.open_store(where, PLAIN)
    index = store.get_manifest(str(pulled.reference.digest))
    needed = sum(layer.descriptor.size for layer in pulled.chip.layers) + len(index.raw)
    needed += (
        len(store.get_manifest(pulled.chip.manifest_digest).raw)
        + (root / "plain" / CHIP / "config.json").stat().st_size
    )
    report.figure("one_chip.needed_bytes", needed)
    report.bar("one chip of eight: wire bytes to content, direct", direct / needed, "<=", 1.01)
    for name in ("first", "second"):
        proxy.reset()
        traffic = Traffic()
        near = CachedStore(api.open_store(where, PLAIN), BlobCache(root / "cache"), traffic)
        begun = time.monotonic()
        api.pull(where, CHIP, root / name, keys=None, store=near)
        report.figure(f"{name}.seconds", time.monotonic() - begun)
        report.figure(f"{name}.wire_bytes", proxy.received)
        report.figure(f"{name}.traffic", traffic.dump())
        if name == "first":
            report.bar("one chip of eight: wire bytes to content, cold cache", proxy.received / needed, "<=", 1.01)
        else:
            blobs = {layer.descriptor.digest for layer in pulled.chip.layers} | {pulled.chip.config_digest}
            report.bar("second pull: GETs of blobs", sum(proxy.gets()[digest] for digest in blobs), "==", 0)
            report.bar("second pull: requests", sum(proxy.gets().values()), "<=", 1)
    same = [(root / name / CHIP / "config.json").read_bytes() for name in ("plain", "first", "second")]
    if len(set(same)) != 1:
        raise RuntimeError("the pulls differ")


def _many_pulls(report: Report, proxy: CountingProxy, pinned: Pinned, root: Path) -> None:
    """Pods of three nodes, many at once."""
    each = 3 if report.smoke else 21
    total = 500 if not report.smoke else each * PROCESSES
    counts = [total // PROCESSES + (number < total % PROCESSES) for number in range(PROCESSES)]
    caches = [root / f"node{number}" for number in range(NODES)]
    proxy.reset()
    begun = time.monotonic()
    firsts = [sum(counts[:number]) for number in range(PROCESSES)]
    done: list[int] = _together(
        pull_many, [(pinned, caches, count, first) for count, first in zip(counts, firsts, strict=True)]
    )
    report.figure("pulls", sum(done))
    _judge_pulls(report, proxy, f"{total} pulls over {NODES} caches", "pulls", begun)
    proxy.reset()
    with contextlib.ExitStack() as stack:
        mirrors = [stack.enter_context(_mirror(root / f"mirror{number}", pinned.repository)) for number in range(NODES)]
        begun = time.monotonic()
        given = [(pinned, mirrors, count, first) for count, first in zip(counts, firsts, strict=True)]
        if sum(_together(pull_mirrored, given)) != total:
            raise RuntimeError("not all were pulled")
        _judge_pulls(report, proxy, f"{total} pulls through {NODES} mirrors", "mirrored", begun)


def _judge_pulls(report: Report, proxy: CountingProxy, what: str, name: str, begun: float) -> None:
    """Each digest exactly once per node."""
    gets = proxy.gets()
    report.figure(f"{name}.seconds", time.monotonic() - begun)
    report.figure(f"{name}.gets", dict(gets.most_common()))
    report.bar(f"{what}: most GETs of one digest", max(gets.values()), "==", NODES)
    report.bar(f"{what}: fewest GETs of one digest", min(gets.values()), "==", NODES)


@contextlib.contextmanager
def _mirror(cache: Path, origin: str) -> Iterator[str]:
    """`serve --from`, as a node runs it; yields its URL."""
    program = str(Path(sys.executable).with_name("firmware-pipeline"))
    command = [
        program,
        "serve",
        str(cache),
        "--listen",
        "127.0.0.1:0",
        "--plain-http",
        "--from",
        origin.rpartition(":")[0],
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _one_blob(report: Report, proxy: CountingProxy, registry: Registry, where: str, root: Path) -> None:
    """16 MB, wanted by 24 processes at the same moment."""
    data = os.urandom((4 if report.smoke else 16) * MB)
    blob = Blob.of(data)
    api.open_store(f"{registry.host}/bench:1", PLAIN, push=True).put_blob(blob)
    wanted = Descriptor(media_type="application/octet-stream", digest=blob.digest, size=blob.size)
    proxy.reset()
    barrier = CONTEXT.Barrier(PROCESSES)
    begun = time.monotonic()
    origins = _together(ensure_one, [(where, root / "shared", wanted, barrier)] * PROCESSES)
    report.figure("one_blob.seconds", time.monotonic() - begun)
    report.bar(f"{PROCESSES} processes, one blob: GETs", proxy.gets()[blob.digest], "==", 1)
    report.bar(f"{PROCESSES} processes, one blob: wire bytes to content", proxy.received / blob.size, "<=", 1.01)
    if sorted(origins) != ["cache"] * (PROCESSES - 1) + ["network"]:
        raise RuntimeError(f"not as expected: {origins}")


def _together(work: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Run one process per tuple; their reports."""
    running = []
    for given in arguments:
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=work, args=(*given, theirs), daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    found = [report.recv() for _, report in running]
    for process, _ in running:
        process.join()
    return found


def _plan(folder: Path, chip: str, payload: int) -> BuildPlan:
    folder.mkdir()
    files = {
        by_target(chip).bootloader_offset: builder.build_bootloader(chip, payload_size=16 * 1024),
        0x8000: build_table(builder.default_partitions()),
        0x20000: builder.build_app(chip, "bench", "1.0.0", payload_size=payload, seed=chip.encode()),
    }
    arguments = []
    for offset, data in files.items():
        path = folder / f"{offset:x}.bin"
        path.write_bytes(data)
        arguments.append(f"{offset:#x}={path}")
    return load_files(arguments)


if __name__ == "__main__":
    sys.exit(main("cache", measure))
