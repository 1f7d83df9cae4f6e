# SPDX-License-Identifier: Apache-2.0
"""A flashing pod fetches from the node's cache or a mirror first, and trusts neither."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from firmware_pipeline.cache import BlobCache
from flashjob.errors import FlashJobError
from flashjob.flasher.fetch import Fetcher
from flashjob.operator.artifacts import PipelineArtifacts
from flashjob.wire import pod
from flashjob.wire.pod import Assignment, TransportKind
from flashjob.wire.target import Target
from tests.unit.firmware.artifacts import push_to
from tests.unit.firmware.hostile_registry import HostileRegistry
from tests.unit.firmware.test_serving import serving


@dataclass
class Node:
    """A registry with an artifact, and a node cache that holds it, too."""

    registry: HostileRegistry
    cache: BlobCache
    target: Target

    async def fetch(self, folder: Path, **environment: str) -> bytes:
        folder.mkdir()
        self.registry.seen.clear()
        assignment = Assignment(
            task="porch-0", attempt=1, device="01" * 33, transport=TransportKind.NETWORK, target=self.target
        )
        return (await Fetcher(folder, environment).get(assignment)).image


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with HostileRegistry() as registry:
        where = f"{registry.host}/porch:1"
        pushed = push_to(where)
        cache = BlobCache(tmp_path / "cache")
        push_to(f"oci:{cache.root}:1")
        artifact = PipelineArtifacts(None).open(where, plain_http=True, docker_config=None)
        yield Node(registry, cache, artifact.target(pushed.index_digest, "esp32s3")[0])


async def test_without_either_everything_comes_from_the_registry(tmp_path: Path, node: Node) -> None:
    assert len(await node.fetch(tmp_path / "work")) == node.target.image_size
    assert node.registry.requests("GET", "/blobs/")


async def test_from_the_cache_nothing_is_asked(tmp_path: Path, node: Node) -> None:
    plain = await node.fetch(tmp_path / "work1")
    assert await node.fetch(tmp_path / "work2", **{pod.ENV_CACHE_DIR: str(node.cache.root)}) == plain
    assert node.registry.seen == []


async def test_from_a_mirror_nothing_is_asked(tmp_path: Path, node: Node) -> None:
    plain = await node.fetch(tmp_path / "work1")
    with serving(node.cache.root) as server:
        assert await node.fetch(tmp_path / "work2", **{pod.ENV_MIRROR: server.url}) == plain
    assert node.registry.seen == []


async def test_rule_2_poison_nearby_is_fetched_from_the_registry(tmp_path: Path, node: Node) -> None:
    plain = await node.fetch(tmp_path / "work1")
    for path in node.cache.root.glob("blobs/sha256/*"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    environment = {pod.ENV_CACHE_DIR: str(node.cache.root)}
    assert await node.fetch(tmp_path / "work2", **environment) == plain
    assert node.registry.requests("GET", node.target.image_digest)


async def test_a_mirror_that_is_no_url_is_said(tmp_path: Path, node: Node) -> None:
    with pytest.raises(FlashJobError) as caught:
        await node.fetch(tmp_path / "work", **{pod.ENV_MIRROR: "nonsense"})
    assert caught.value.reason == "InternalError"
    assert "nonsense" in caught.value.message
