# SPDX-License-Identifier: Apache-2.0
"""The cluster in memory behaves as ours expect an API server to; tests/integration runs the same against a real one."""

from flashjob.cluster.fake import FakeCluster
from tests.cluster_conformance import Story, by_story


@by_story
async def test_fake(cluster: FakeCluster, story: Story) -> None:
    await story(cluster, "default")
