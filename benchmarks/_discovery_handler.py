# SPDX-License-Identifier: Apache-2.0
"""The network handler as a process: all that `flashjob discovery-handler` is, on a cluster in memory.

    python -m benchmarks._discovery_handler WORLD.json

WORLD.json: {"directory": where the agent's socket is, "key": PEM, "objects": {"devices": [...], "policies": [...],
"configurations": [...]}}. It prints a line before it begins, and is then only ended. The cluster's own memory and work
are counted as the handler's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

from attestation.discovery.details import Transport
from attestation.keys import private_from_pem
from flashjob.cli.discovery_handler import serve
from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.resources import ATTESTATION_POLICIES, CONFIGURATIONS, DEVICES


async def _run(world: dict[str, Any]) -> None:
    cluster = FakeCluster()
    for name, resource in (
        ("policies", ATTESTATION_POLICIES),
        ("devices", DEVICES),
        ("configurations", CONFIGURATIONS),
    ):
        for obj in world["objects"].pop(name):
            whole = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
            await cluster.create(resource, obj["metadata"]["namespace"], whole)
    cluster.compact()
    key = private_from_pem(world["key"].encode())
    sys.stdout.write("begins\n")
    sys.stdout.flush()
    await serve(cluster, Transport.NETWORK, Path(world["directory"]), key, node="bench")


def main() -> None:
    """Entry point."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    asyncio.run(_run(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
