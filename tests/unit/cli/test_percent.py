# SPDX-License-Identifier: Apache-2.0
"""Rules of percent.py, against the real door over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashjob.cli.percent import Percent
from flashjob.cluster.resources import CONFIG_MAPS, SERVICE_ACCOUNTS
from flashjob.wire.gateway import Stage

from .story import JOB, NS, Cluster, Gateway


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with Gateway(tmp_path / "one").serving() as serving:
        yield serving


class Seen:
    """A Percent that runs, and what it told."""

    def __init__(self, cluster: Cluster, url: str = "") -> None:
        self.told: list[str] = []
        self._event = asyncio.Event()
        self.percent = Percent(
            cluster.api, NS, JOB, self._event.set, self.told.append, url, every=0.02, after_trouble=0.05
        )

    async def change(self) -> dict[str, int]:
        """After the next answer or loss: bytes done by task."""
        async with asyncio.timeout(10):
            await self._event.wait()
        self._event.clear()
        return {name: item.done for name, item in self.percent.found.items()}


@contextmanager
def running(cluster: Cluster, url: str = "") -> Iterator[Seen]:
    seen = Seen(cluster, url)
    task = asyncio.create_task(seen.percent.run())
    try:
        yield seen
    finally:
        task.cancel()


async def test_rule_1_url_and_ca_of_the_namespace(gateway: Gateway) -> None:
    cluster = Cluster()
    await cluster.publish(gateway.url, gateway.ca)
    gateway.at("t0", Stage.WRITING, 5, 10)
    gateway.at("of-another-job", Stage.WRITING, 6, 10, job="other")
    with running(cluster) as seen:
        assert await seen.change() == {"t0": 5}
        gateway.at("t0", Stage.WRITING, 7, 10)
        while await seen.change() != {"t0": 7}:
            pass
    assert seen.told == []


async def test_rule_1_a_url_by_hand_comes_first(gateway: Gateway) -> None:
    cluster = Cluster()
    await cluster.publish("https://127.0.0.1:1", gateway.ca)
    with running(cluster, gateway.url) as seen:
        assert await seen.change() == {}
    assert gateway.keeper.tokens
    assert seen.told == []


async def test_rule_1_another_ca_is_not_trusted(gateway: Gateway, tmp_path: Path) -> None:
    cluster = Cluster()
    await cluster.publish(gateway.url, Gateway(tmp_path / "two").ca)
    with running(cluster) as seen:
        await seen.change()
    assert len(seen.told) == 1
    assert "certificate" in seen.told[0].lower()
    assert gateway.keeper.tokens == [], "no token for a stranger"


async def test_rule_2_token_of_the_viewer_kept_while_it_is_good(gateway: Gateway) -> None:
    cluster = Cluster()
    await cluster.publish(gateway.url, gateway.ca)
    with running(cluster) as seen:
        for _ in range(4):
            await seen.change()
    assert set(gateway.keeper.tokens) == {f"fake:{NS}:flashjob-viewer:flashjob-gateway:"}
    asked = [call for call in cluster.api.calls if call.resource is SERVICE_ACCOUNTS and call.verb == "token"]
    assert len(asked) == 1


async def test_rule_2_token_is_renewed_before_it_ends(gateway: Gateway) -> None:
    cluster = Cluster()
    await cluster.publish(gateway.url, gateway.ca)
    with running(cluster) as seen:
        await seen.change()
        now = seen.percent.clock
        seen.percent.clock = lambda: now() + 545
        for _ in range(3):
            await seen.change()
    assert len([call for call in cluster.api.calls if call.verb == "token"]) >= 2


@pytest.mark.parametrize("url", ["http://example.test:8443", "ftp://127.0.0.1", "https://", "gateway"])
async def test_rule_3_the_token_goes_to_no_such_place(url: str) -> None:
    cluster = Cluster()
    await cluster.publish(url, "")
    with running(cluster) as seen:
        await seen.change()
    assert len(seen.told) == 1
    assert not [call for call in cluster.api.calls if call.verb == "token"]


async def test_rule_4_trouble_is_told_once_and_old_numbers_go(gateway: Gateway) -> None:
    cluster = Cluster()
    await cluster.publish(gateway.url, gateway.ca)
    gateway.at("t0", Stage.WRITING, 5, 10)
    token = f"fake:{NS}:flashjob-viewer:flashjob-gateway:"
    with running(cluster) as seen:
        assert await seen.change() == {"t0": 5}
        gateway.keeper.revoked.add(token)
        while await seen.change():
            pass
        for _ in range(3):
            assert await seen.change() == {}
        assert seen.told == ["no per cent, phases only: it answers 403"]
        gateway.keeper.revoked.clear()
        while await seen.change() != {"t0": 5}:
            pass
    assert len(seen.told) == 1


@pytest.mark.parametrize("missing", ["config", "ca", "account"])
async def test_rule_4_an_installation_without_the_parts(gateway: Gateway, missing: str) -> None:
    cluster = Cluster()
    await cluster.publish(gateway.url, "no PEM" if missing == "ca" else gateway.ca)
    if missing == "config":
        await cluster.api.delete(CONFIG_MAPS, NS, "flashjob-gateway")
    if missing == "account":
        await cluster.api.delete(SERVICE_ACCOUNTS, NS, "flashjob-viewer")
    with running(cluster) as seen:
        await seen.change()
        await seen.change()
    (told,) = seen.told
    assert "flashjob-" in told
    assert "\n" not in told
