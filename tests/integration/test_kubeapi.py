# SPDX-License-Identifier: Apache-2.0
"""The real client against a real API server: the conformance stories, and what only a real server can answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from flashjob.cluster.aio import AioKubeApi
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.login import connect
from flashjob.cluster.reflector import Reflector
from flashjob.cluster.resources import CONFIG_MAPS, DEVICES, SERVICE_ACCOUNTS
from flashjob.sandbox.launcher import ControlPlane
from tests.cluster_conformance import Story, by_story, config_map
from tests.integration.test_crds import install_crds
from tests.objects import device

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def kubeconfig(control_plane: ControlPlane) -> Path:
    install_crds(control_plane)
    return control_plane.kubeconfig


@pytest_asyncio.fixture
async def api(kubeconfig: Path) -> AsyncIterator[AioKubeApi]:
    async with await connect(kubeconfig) as api:
        yield api


@by_story
async def test_real(api: AioKubeApi, namespace: str, story: Story) -> None:
    await story(api, namespace)


async def test_wrong_credentials_and_missing_rights(
    control_plane: ControlPlane, api: AioKubeApi, namespace: str, tmp_path: Path
) -> None:
    await api.create(SERVICE_ACCOUNTS, namespace, {"metadata": {"name": "nobody"}})
    weak = control_plane.service_account_kubeconfig(namespace, "nobody", 600)
    async with await connect(weak) as other:
        with pytest.raises(ApiError) as caught:
            await other.get(DEVICES, namespace, "d")
    assert (caught.value.status, caught.value.reason, caught.value.transient) == (403, "Forbidden", False)
    forged = tmp_path / "forged.yaml"
    forged.write_text(weak.read_text().replace('"token": "', '"token": "x'))
    async with await connect(forged) as other:
        with pytest.raises(ApiError) as caught:
            await other.get(DEVICES, namespace, "d")
    assert caught.value.status == 401


async def test_no_server_is_unreachable(kubeconfig: Path, control_plane: ControlPlane, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.yaml"
    nowhere.write_text(kubeconfig.read_text().replace(control_plane.url, "https://127.0.0.1:9"))
    async with await connect(nowhere) as api:
        with pytest.raises(ApiError) as caught:
            await api.get(CONFIG_MAPS, "default", "a")
    assert (caught.value.status, caught.value.reason, caught.value.transient) == (0, "Unreachable", True)


async def test_a_reflector_follows_a_real_collection(api: AioKubeApi, namespace: str) -> None:
    await api.create(DEVICES, namespace, device("before"))
    seen: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
    reflector = Reflector(
        api,
        DEVICES,
        namespace,
        project=lambda obj: obj["spec"].get("suspended"),
        on_change=lambda key, old, new: seen.put_nowait((key[1], new is not None)),
    )
    running = asyncio.create_task(reflector.run())
    try:
        async with asyncio.timeout(20):
            await reflector.synced.wait()
            assert await seen.get() == ("before", True)
            await api.create(DEVICES, namespace, device("after"))
            assert await seen.get() == ("after", True)
            await api.patch_status(DEVICES, namespace, "after", {"endpoint": "127.0.0.1:1"}, field_manager="t")
            await api.delete(DEVICES, namespace, "before")
            assert await seen.get() == ("before", False)
        assert reflector.lists == 1
        assert list(reflector.items()) == [((namespace, "after"), False)]
    finally:
        running.cancel()


async def test_concurrent_creates_have_one_winner(api: AioKubeApi, namespace: str) -> None:
    results = await asyncio.gather(
        *(api.create(CONFIG_MAPS, namespace, config_map("one")) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, dict) for result in results) == 1
