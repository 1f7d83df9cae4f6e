# SPDX-License-Identifier: Apache-2.0
"""The reflector under everything that a connection can do to it: its cache is what the cluster holds, in the end."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.kubeapi import ApiError, WatchEvent
from flashjob.cluster.reflector import Key, Reflector
from flashjob.cluster.resources import DEVICES, FLASHTASKS, Obj
from tests.clusters import fake_cluster, until
from tests.objects import device, flashtask

NS = "default"


def suspended(obj: Obj) -> bool:
    return bool(obj["spec"].get("suspended"))


class Watched:
    """A running reflector, what it reported, and how long it waited."""

    def __init__(self, cluster: FakeCluster, project: Callable[[Obj], Any] = suspended, **options: Any) -> None:
        self.changes: list[tuple[str, Any, Any]] = []
        self.waits: list[float] = []
        self.reflector: Reflector[Any] = Reflector(
            cluster,
            DEVICES,
            NS,
            project=project,
            on_change=self._changed,
            random_source=random.Random(7),
            sleep=self._sleep,
            **options,
        )

    def _changed(self, key: Key, old: Any, new: Any) -> None:
        self.changes.append((key[1], old, new))

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)

    def names(self) -> set[str]:
        return {name for _, name in dict(self.reflector.items())}


@pytest.fixture
async def watched(cluster: FakeCluster) -> AsyncIterator[Watched]:
    watched = Watched(cluster)
    running = asyncio.create_task(watched.reflector.run())
    yield watched
    running.cancel()


async def ready(cluster: FakeCluster, watched: Watched) -> None:
    """Synced, a watch is running, and what is stored is cached."""
    await until(
        lambda: (
            watched.reflector.synced.is_set()
            and cluster.watching(DEVICES) == 1
            and len(watched.reflector) == len(cluster.all(DEVICES))
        )
    )


async def test_rule_1_lists_in_pages_then_follows(cluster: FakeCluster, watched: Watched) -> None:
    for number in range(5):
        await cluster.create(DEVICES, NS, device(f"d{number}"))
    await ready(cluster, watched)
    assert watched.names() == {f"d{number}" for number in range(5)}
    await cluster.create(DEVICES, NS, device("new"))
    await cluster.patch(DEVICES, NS, "d1", {"spec": {"suspended": True}}, field_manager="t")
    await cluster.delete(DEVICES, NS, "d0")
    await until(lambda: "d0" not in watched.names())
    assert watched.changes[5:] == [("new", None, False), ("d1", False, True), ("d0", False, None)]
    assert watched.reflector.lists == 1


async def test_rule_1_is_synced_only_after_every_change_was_reported(cluster: FakeCluster) -> None:
    await cluster.create(DEVICES, NS, device("d"))
    watched = Watched(cluster)
    synced_at_report: list[bool] = []
    watched.reflector.subscribe(lambda *_: synced_at_report.append(watched.reflector.synced.is_set()))
    running = asyncio.create_task(watched.reflector.run())
    await watched.reflector.synced.wait()
    assert synced_at_report == [False]
    running.cancel()


async def test_rule_1_a_deletion_while_deaf_is_synthesised(cluster: FakeCluster, watched: Watched) -> None:
    for name in ("a", "b"):
        await cluster.create(DEVICES, NS, device(name))
    await ready(cluster, watched)
    cluster.swallow(DEVICES)
    await cluster.delete(DEVICES, NS, "a")
    assert watched.names() == {"a", "b"}
    cluster.compact()
    cluster.disconnect(DEVICES)
    await until(lambda: watched.names() == {"b"})
    assert ("a", False, None) in watched.changes
    assert watched.reflector.lists == 2


async def test_rule_2_too_old_lists_again_at_once(cluster: FakeCluster, watched: Watched) -> None:
    await ready(cluster, watched)
    cluster.disconnect(DEVICES, ApiError(410, "Expired", "too old resource version"))
    await until(lambda: watched.reflector.lists == 2)
    assert watched.waits == []
    assert watched.reflector.synced.is_set()


async def test_rule_2_an_error_in_the_stream_lists_again(cluster: FakeCluster, watched: Watched) -> None:
    await cluster.create(DEVICES, NS, device("a"))
    await ready(cluster, watched)
    cluster.swallow(DEVICES)
    await cluster.delete(DEVICES, NS, "a")
    cluster.disconnect(DEVICES, ApiError(500, "InternalError", "etcd has no leader"))
    await until(lambda: watched.names() == set())
    assert watched.reflector.lists == 2
    assert len(watched.waits) == 1


async def test_rule_2_a_page_token_that_expired_lists_again(cluster: FakeCluster) -> None:
    for number in range(300):
        await cluster.create(DEVICES, NS, device(f"d{number}"))
    cluster.fail(ApiError(410, "Expired", "the provided continue parameter is too old"), verb="list", skip=1)
    watched = Watched(cluster)
    running = asyncio.create_task(watched.reflector.run())
    await ready(cluster, watched)
    assert len(watched.reflector) == 300
    assert watched.reflector.lists == 1
    assert len(watched.changes) == 300
    running.cancel()


async def test_rule_2_the_cache_stays_readable_while_the_server_is_away(cluster: FakeCluster, watched: Watched) -> None:
    await cluster.create(DEVICES, NS, device("a"))
    await ready(cluster, watched)
    cluster.fail(ApiError(503, "ServiceUnavailable", "starting"), resource=DEVICES, times=4)
    cluster.disconnect(DEVICES, ApiError(500, "InternalError", "shutting down"))
    await until(lambda: watched.reflector.last_error is not None)
    assert watched.names() == {"a"}
    await until(lambda: watched.reflector.lists == 2)
    assert watched.waits == sorted(watched.waits)
    assert watched.reflector.last_error is None


async def test_rule_3_no_answer_goes_on_from_the_last_version(cluster: FakeCluster, watched: Watched) -> None:
    await ready(cluster, watched)
    cluster.fail(ApiError(0, "Unreachable", "connection reset"), verb="watch", times=3)
    cluster.disconnect(DEVICES)
    await cluster.create(DEVICES, NS, device("meanwhile"))
    await until(lambda: "meanwhile" in watched.names())
    assert watched.reflector.lists == 1
    assert len(watched.waits) >= 3


async def test_rule_3_the_server_may_ask_for_more_patience(cluster: FakeCluster, watched: Watched) -> None:
    await ready(cluster, watched)
    cluster.fail(ApiError(429, "TooManyRequests", "busy", retry_after=9), verb="watch")
    cluster.disconnect(DEVICES)
    await until(lambda: cluster.watching(DEVICES) == 1 and len(watched.waits) > 0 and max(watched.waits) >= 9)
    assert watched.reflector.lists == 1


async def test_rule_4_a_duplicate_changes_nothing(cluster: FakeCluster, watched: Watched) -> None:
    made = await cluster.create(DEVICES, NS, device("a"))
    await ready(cluster, watched)
    changed = await cluster.patch(DEVICES, NS, "a", {"spec": {"suspended": True}}, field_manager="t")
    for old in (made, changed, made):
        cluster.inject(DEVICES, WatchEvent("MODIFIED", old))
    await cluster.create(DEVICES, NS, device("last"))
    await until(lambda: "last" in watched.names())
    assert watched.reflector.get(NS, "a") is True
    assert watched.reflector.lists == 1


async def test_rule_4_an_event_out_of_order_lists_again(cluster: FakeCluster, watched: Watched) -> None:
    await ready(cluster, watched)
    early = await cluster.create(DEVICES, NS, device("early"))
    await cluster.delete(DEVICES, NS, "early")
    await until(lambda: len(watched.changes) == 2)
    cluster.inject(DEVICES, WatchEvent("ADDED", early))  # a ghost: it would rise from the dead
    await until(lambda: watched.reflector.lists == 2)
    assert watched.names() == set()


async def test_rule_5_what_the_projection_does_not_show_is_not_reported(cluster: FakeCluster, watched: Watched) -> None:
    await cluster.create(DEVICES, NS, device("a"))
    await ready(cluster, watched)
    await cluster.patch_status(DEVICES, NS, "a", {"endpoint": "127.0.0.1:1"}, field_manager="t")
    await cluster.create(DEVICES, NS, device("b"))
    await until(lambda: "b" in watched.names())
    assert [name for name, _, _ in watched.changes] == ["a", "b"]


async def test_rule_5_a_new_uid_under_an_old_name_is_another_object(cluster: FakeCluster, watched: Watched) -> None:
    await cluster.create(DEVICES, NS, device("a"))
    await ready(cluster, watched)
    cluster.swallow(DEVICES)
    await cluster.delete(DEVICES, NS, "a")
    await cluster.create(DEVICES, NS, device("a"))
    await until(lambda: len(watched.changes) == 3)
    assert watched.changes[1:] == [("a", False, None), ("a", None, False)]


@pytest.mark.parametrize("trouble", [ValueError, KeyError, TypeError, AttributeError])
async def test_rule_6_an_unreadable_object_is_named_not_kept(cluster: FakeCluster, trouble: type[Exception]) -> None:
    def strict(obj: Obj) -> str:
        if obj["spec"].get("suspended"):
            raise trouble("cannot read this")
        return str(obj["spec"]["id"])

    watched = Watched(cluster, strict)
    running = asyncio.create_task(watched.reflector.run())
    await cluster.create(DEVICES, NS, device("a"))
    await ready(cluster, watched)
    await cluster.patch(DEVICES, NS, "a", {"spec": {"suspended": True}}, field_manager="t")
    await until(lambda: watched.reflector.unreadable)
    assert list(watched.reflector.unreadable) == [(NS, "a")]
    assert "cannot read this" in watched.reflector.unreadable[NS, "a"]
    assert watched.changes[-1][2] is None
    assert len(watched.reflector) == 0
    await cluster.patch(DEVICES, NS, "a", {"spec": {"suspended": False}}, field_manager="t")
    await until(lambda: len(watched.reflector) == 1)
    assert watched.reflector.unreadable == {}
    running.cancel()


async def test_age_tells_deafness(cluster: FakeCluster, watched: Watched) -> None:
    loop = asyncio.get_running_loop()
    assert Watched(cluster).reflector.age(loop.time()) == float("inf")
    await ready(cluster, watched)
    assert watched.reflector.age(loop.time() + 130) >= 130
    cluster.bookmark(DEVICES)
    await asyncio.sleep(0.01)
    assert watched.reflector.age(loop.time()) < 5


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "delete", "toggle", "lose", "compact", "cut", "error", "duplicate", "refuse"]),
        st.sampled_from("abc"),
    ),
    max_size=25,
)


async def play(steps: list[tuple[str, str]]) -> None:
    cluster = fake_cluster()
    watched = Watched(cluster)
    running = asyncio.create_task(watched.reflector.run())
    mirror: dict[str, bool] = {}

    def follow(key: Key, old: Any, new: Any) -> None:
        assert mirror.get(key[1]) == old
        if new is None:
            del mirror[key[1]]
        else:
            mirror[key[1]] = new

    watched.reflector.subscribe(follow)
    last: Obj | None = None
    for step, name in steps:
        known = {obj["metadata"]["name"]: obj for obj in cluster.all(DEVICES)}
        match step:
            case "create" if name not in known:
                last = await cluster.create(DEVICES, NS, device(name))
            case "delete" if name in known:
                await cluster.delete(DEVICES, NS, name)
            case "toggle" if name in known:
                flip = {"spec": {"suspended": not suspended(known[name])}}
                last = await cluster.patch(DEVICES, NS, name, flip, field_manager="t")
            case "lose":
                cluster.swallow(DEVICES)
            case "compact":
                cluster.compact()
            case "cut":
                cluster.disconnect(DEVICES)
            case "error":
                cluster.disconnect(DEVICES, ApiError(500, "InternalError", "x"))
            case "duplicate" if last is not None:
                cluster.inject(DEVICES, WatchEvent("MODIFIED", last))
            case "refuse":
                cluster.fail(ApiError(503, "ServiceUnavailable", "x"), resource=DEVICES, verb="list")
    # Whatever was lost is made good by the next list.
    cluster.swallow(DEVICES, 0)
    await cluster.create(FLASHTASKS, NS, flashtask("t"))
    cluster.compact()
    cluster.disconnect(DEVICES, ApiError(410, "Expired", "too old"))
    lists = watched.reflector.lists
    await until(lambda: watched.reflector.lists > lists and cluster.watching(DEVICES) == 1)
    stored = {obj["metadata"]["name"]: suspended(obj) for obj in cluster.all(DEVICES)}
    await until(lambda: {key[1]: value for key, value in watched.reflector.items()} == stored)
    assert mirror == stored
    running.cancel()


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_any_story_ends_in_the_truth(steps: list[tuple[str, str]]) -> None:
    asyncio.run(play(steps))
