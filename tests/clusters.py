# SPDX-License-Identifier: Apache-2.0
"""In-memory clusters that know our kinds, and small helpers to wait for what they lead to."""

import asyncio
from collections.abc import Callable
from typing import Any

from flashjob.api.crds import KINDS, structural_schema
from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.resources import ATTESTATION_POLICIES, DEVICES, FLASHJOBS, FLASHTASKS

_OURS = {resource.kind: resource for resource in (FLASHJOBS, FLASHTASKS, DEVICES, ATTESTATION_POLICIES)}
SCHEMAS = {_OURS[kind.name]: structural_schema(kind.model) for kind in KINDS}


def fake_cluster(**options: Any) -> FakeCluster:
    """An empty cluster in memory that prunes, defaults and validates our kinds."""
    cluster = FakeCluster(schemas=SCHEMAS, **options)
    cluster.raw["/version"] = {"gitVersion": "v0.0.0-fake"}
    return cluster


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Let the event loop run until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)
