# SPDX-License-Identifier: Apache-2.0
"""A cluster in memory with our schemas."""

import pytest

from flashjob.cluster.fake import FakeCluster
from tests.clusters import fake_cluster


@pytest.fixture
def cluster() -> FakeCluster:
    """An empty cluster that knows our kinds."""
    return fake_cluster()
