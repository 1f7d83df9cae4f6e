# SPDX-License-Identifier: Apache-2.0
"""What our code expects of an API server, as stories that run against the real one and against the one in memory.

Each takes a KubeApi, and a namespace of its own in which it may do anything; our CRDs are installed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import pytest

from flashjob.cluster.kubeapi import ApiError, KubeApi, WatchEvent, list_all
from flashjob.cluster.resources import (
    ATTESTATION_POLICIES,
    CONFIG_MAPS,
    DEVICES,
    FLASHJOBS,
    FLASHTASKS,
    LEASES,
    SERVICE_ACCOUNTS,
    Obj,
    Resource,
)
from tests.objects import device, flashjob, flashtask, policy

Story = Callable[[KubeApi, str], Awaitable[None]]


def config_map(name: str, **data: str) -> Obj:
    return {"metadata": {"name": name}, "data": data}


async def refused(call: Awaitable[Any]) -> ApiError:
    """The ApiError that the call must end in."""
    with pytest.raises(ApiError) as caught:
        await call
    return caught.value


async def take(
    api: KubeApi, resource: Resource, namespace: str, version: str, count: int, **kw: Any
) -> list[WatchEvent]:
    """The next `count` events that are not bookmarks."""
    found: list[WatchEvent] = []
    async with asyncio.timeout(10), aclosing(api.watch(resource, namespace, resource_version=version, **kw)) as events:
        async for event in events:
            if event.type != "BOOKMARK":
                found.append(event)
            if len(found) == count:
                break
    return found


async def create_gives_identity(api: KubeApi, namespace: str) -> None:
    made = await api.create(FLASHTASKS, namespace, {**flashtask("t"), "status": {"phase": "Succeeded"}})
    metadata = made["metadata"]
    assert metadata["uid"]
    assert metadata["generation"] == 1
    assert metadata["creationTimestamp"].endswith("Z")
    assert metadata["namespace"] == namespace
    assert made["status"]["phase"] == "Pending"  # a create cannot set status; the schema's default stands
    assert await api.get(FLASHTASKS, namespace, "t") == made


async def names_are_taken_once(api: KubeApi, namespace: str) -> None:
    await api.create(CONFIG_MAPS, namespace, config_map("a"))
    error = await refused(api.create(CONFIG_MAPS, namespace, config_map("a")))
    assert (error.already_exists, error.conflict, error.transient) == (True, False, False)
    assert (await refused(api.get(CONFIG_MAPS, namespace, "b"))).not_found
    assert (await refused(api.delete(CONFIG_MAPS, namespace, "b"))).not_found
    assert (await refused(api.patch(CONFIG_MAPS, namespace, "b", {"data": {}}, field_manager="t"))).not_found


async def put_needs_the_version_it_read(api: KubeApi, namespace: str) -> None:
    lease: Obj = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a", "leaseTransitions": 1}}
    first = await api.create(LEASES, namespace, lease)
    second = await api.replace(LEASES, namespace, {**first, "spec": {"holderIdentity": "b", "leaseTransitions": 2}})
    assert second["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
    assert (await refused(api.replace(LEASES, namespace, {**first, "spec": {"holderIdentity": "c"}}))).conflict
    job = await api.create(FLASHJOBS, namespace, flashjob("j"))
    del job["metadata"]["resourceVersion"]
    assert (await refused(api.replace(FLASHJOBS, namespace, job))).status == 422


async def status_is_a_room_of_its_own(api: KubeApi, namespace: str) -> None:
    made = await api.create(FLASHTASKS, namespace, flashtask("t"))
    patched = await api.patch_status(
        FLASHTASKS, namespace, "t", {"phase": "Writing", "waiting": None}, field_manager="op"
    )
    assert patched["status"]["phase"] == "Writing"
    assert patched["metadata"]["generation"] == made["metadata"]["generation"]
    main = await api.patch(
        FLASHTASKS,
        namespace,
        "t",
        {"status": {"phase": "Failed"}, "metadata": {"labels": {"a": "b"}}},
        field_manager="op",
    )
    assert main["status"]["phase"] == "Writing"
    assert main["metadata"]["labels"] == {"a": "b"}
    assert main["metadata"]["generation"] == made["metadata"]["generation"]


async def status_can_be_conditional(api: KubeApi, namespace: str) -> None:
    made = await api.create(FLASHTASKS, namespace, flashtask("t"))
    version = made["metadata"]["resourceVersion"]
    report = {"report": {"usedNonces": ["aa"]}}
    write = {"field_manager": "gateway", "resource_version": version}
    results = await asyncio.gather(
        *(api.patch_status(FLASHTASKS, namespace, "t", report | {"attempt": n}, **write) for n in range(1, 4)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, dict) for result in results) == 1
    assert all(result.conflict for result in results if isinstance(result, ApiError))


async def merge_patch_sets_and_removes(api: KubeApi, namespace: str) -> None:
    await api.create(CONFIG_MAPS, namespace, config_map("a", x="1", y="2"))
    made = await api.patch(CONFIG_MAPS, namespace, "a", {"data": {"x": None, "z": "3"}}, field_manager="t")
    assert made["data"] == {"y": "2", "z": "3"}
    stale = {"metadata": {"resourceVersion": "1"}, "data": {"z": "4"}}
    assert (await refused(api.patch(CONFIG_MAPS, namespace, "a", stale, field_manager="t"))).conflict


async def a_write_of_nothing_is_no_event(api: KubeApi, namespace: str) -> None:
    made = await api.create(DEVICES, namespace, device("d"))
    same = await api.patch(DEVICES, namespace, "d", {"spec": {"suspended": False}}, field_manager="t")
    assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    changed = await api.patch(DEVICES, namespace, "d", {"spec": {"suspended": True}}, field_manager="t")
    assert changed["metadata"]["generation"] == 2


async def unknown_fields_are_pruned(api: KubeApi, namespace: str) -> None:
    made = await api.create(DEVICES, namespace, device("d", favouriteColour="red"))
    assert "favouriteColour" not in made["spec"]


async def bad_objects_are_invalid(api: KubeApi, namespace: str) -> None:
    error = await refused(api.create(DEVICES, namespace, device("d", device_id="not-hex")))
    assert (error.status, error.reason) == (422, "Invalid")
    assert "spec.id" in error.message
    await api.create(DEVICES, namespace, device("d"))
    status = {"endpoint": "x" * 300}
    error = await refused(api.patch_status(DEVICES, namespace, "d", status, field_manager="t"))
    assert error.status == 422
    assert "status.endpoint" in error.message


async def delete_has_preconditions(api: KubeApi, namespace: str) -> None:
    made = await api.create(CONFIG_MAPS, namespace, config_map("a"))
    assert (await refused(api.delete(CONFIG_MAPS, namespace, "a", uid="somebody-else"))).conflict
    await api.delete(
        CONFIG_MAPS,
        namespace,
        "a",
        uid=made["metadata"]["uid"],
        resource_version=made["metadata"]["resourceVersion"],
    )
    again = await api.create(CONFIG_MAPS, namespace, config_map("a"))
    assert again["metadata"]["uid"] != made["metadata"]["uid"]


async def finalizers_hold_an_object(api: KubeApi, namespace: str) -> None:
    held = flashjob("j")
    held["metadata"]["finalizers"] = ["flashjob.dev/finalizer"]
    await api.create(FLASHJOBS, namespace, held)
    await api.delete(FLASHJOBS, namespace, "j")
    going = await api.get(FLASHJOBS, namespace, "j")
    assert going["metadata"]["deletionTimestamp"]
    assert (await refused(api.create(FLASHJOBS, namespace, flashjob("j")))).already_exists
    await api.patch(FLASHJOBS, namespace, "j", {"metadata": {"finalizers": None}}, field_manager="t")
    assert (await refused(api.get(FLASHJOBS, namespace, "j"))).not_found


async def dependents_follow_their_owner(api: KubeApi, namespace: str) -> None:
    owner = await api.create(CONFIG_MAPS, namespace, config_map("owner"))
    dependent = config_map("dependent")
    dependent["metadata"]["ownerReferences"] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    ]
    made = await api.create(CONFIG_MAPS, namespace, dependent)
    await api.delete(CONFIG_MAPS, namespace, "owner")
    events = await take(api, CONFIG_MAPS, namespace, made["metadata"]["resourceVersion"], 2)
    assert [(event.type, event.object["metadata"]["name"]) for event in events] == [
        ("DELETED", "owner"),
        ("DELETED", "dependent"),
    ]


async def selectors_select(api: KubeApi, namespace: str) -> None:
    for name, labels in {"a": {"x": "1"}, "b": {"x": "2"}, "c": {"x": "1", "y": "1"}, "d": {}}.items():
        await api.create(CONFIG_MAPS, namespace, {"metadata": {"name": name, "labels": labels}})

    async def names(**selectors: str) -> str:
        found = await list_all(api, CONFIG_MAPS, namespace, **selectors)
        return "".join(obj["metadata"]["name"] for obj in found if obj["metadata"]["name"] in "abcd")

    assert await names() == "abcd"
    assert await names(label_selector="x=1") == "ac"
    assert await names(label_selector="x!=1") == "bd"
    assert await names(label_selector="x in (1,2),!y") == "ab"
    assert await names(label_selector="x notin (2)") == "acd"
    assert await names(label_selector="y") == "c"
    assert await names(field_selector="metadata.name=b") == "b"
    await api.create(FLASHTASKS, namespace, flashtask("t1"))
    await api.create(FLASHTASKS, namespace, flashtask("t2"))
    await api.patch_status(FLASHTASKS, namespace, "t2", {"phase": "Failed"}, field_manager="t")
    pending = await list_all(api, FLASHTASKS, namespace, field_selector="status.phase=Pending")
    assert [obj["metadata"]["name"] for obj in pending] == ["t1"]


async def lists_come_in_pages(api: KubeApi, namespace: str) -> None:
    for number in range(7):
        await api.create(DEVICES, namespace, device(f"d{number}"))
    async with aclosing(api.list_pages(DEVICES, namespace, limit=3)) as pages:
        found = [(len(page.items), page.resource_version) async for page in pages]
    assert [count for count, _ in found] == [3, 3, 1]
    assert len({version for _, version in found}) == 1
    empty = [page async for page in api.list_pages(ATTESTATION_POLICIES, namespace)]
    assert [list(page.items) for page in empty] == [[]]


async def a_watch_replays_from_a_version(api: KubeApi, namespace: str) -> None:
    made = await api.create(CONFIG_MAPS, namespace, {"metadata": {"name": "a", "labels": {"x": "1"}}})
    version = made["metadata"]["resourceVersion"]
    await api.patch(CONFIG_MAPS, namespace, "a", {"data": {"k": "1"}}, field_manager="t")
    await api.patch(CONFIG_MAPS, namespace, "a", {"metadata": {"labels": {"x": "2"}}}, field_manager="t")
    await api.patch(CONFIG_MAPS, namespace, "a", {"metadata": {"labels": {"x": "1"}}}, field_manager="t")
    await api.delete(CONFIG_MAPS, namespace, "a")
    everything = await take(api, CONFIG_MAPS, namespace, version, 4)
    assert [event.type for event in everything] == ["MODIFIED", "MODIFIED", "MODIFIED", "DELETED"]
    selected = await take(api, CONFIG_MAPS, namespace, version, 4, label_selector="x=1")
    assert [event.type for event in selected] == ["MODIFIED", "DELETED", "ADDED", "DELETED"]
    versions = [int(event.object["metadata"]["resourceVersion"]) for event in everything]
    assert versions == sorted(versions)


async def a_watch_ends_by_itself(api: KubeApi, namespace: str) -> None:
    made = await api.create(CONFIG_MAPS, namespace, config_map("a"))
    async with asyncio.timeout(10):
        stream = api.watch(
            CONFIG_MAPS, namespace, resource_version=made["metadata"]["resourceVersion"], timeout_seconds=1
        )
        assert {event.type async for event in stream} <= {"BOOKMARK"}


async def apply_owns_its_fields(api: KubeApi, namespace: str) -> None:
    await api.apply(CONFIG_MAPS, namespace, config_map("a", x="1", y="1"), field_manager="one")
    made = await api.apply(CONFIG_MAPS, namespace, config_map("a", z="1"), field_manager="two")
    assert made["data"] == {"x": "1", "y": "1", "z": "1"}
    made = await api.apply(CONFIG_MAPS, namespace, config_map("a", x="2"), field_manager="one")
    assert made["data"] == {"x": "2", "z": "1"}
    assert (await refused(api.apply(CONFIG_MAPS, namespace, config_map("a", x="3"), field_manager="two"))).conflict
    made = await api.apply(CONFIG_MAPS, namespace, config_map("a", x="3"), field_manager="two", force=True)
    assert made["data"] == {"x": "3"}
    await api.patch(CONFIG_MAPS, namespace, "a", {"data": {"x": "4"}}, field_manager="three")
    assert (await refused(api.apply(CONFIG_MAPS, namespace, config_map("a", x="5"), field_manager="two"))).conflict


async def tokens_are_asked_for(api: KubeApi, namespace: str) -> None:
    await api.create(SERVICE_ACCOUNTS, namespace, {"metadata": {"name": "viewer"}})
    token = await api.token_request(namespace, "viewer", audiences=["flashjob-gateway"], seconds=600)
    assert token.token
    assert token.expires.endswith("Z")
    assert (await refused(api.token_request(namespace, "nobody", audiences=["x"]))).not_found
    bound = api.token_request(namespace, "viewer", audiences=["x"], pod=("no-pod", "no-uid"))
    assert (await refused(bound)).not_found


async def policies_have_no_status(api: KubeApi, namespace: str) -> None:
    await api.create(ATTESTATION_POLICIES, namespace, policy("p"))
    error = await refused(api.patch_status(ATTESTATION_POLICIES, namespace, "p", {"a": "b"}, field_manager="t"))
    assert error.not_found


async def other_documents_can_be_had(api: KubeApi, namespace: str) -> None:
    assert "gitVersion" in await api.get_raw("/version")
    assert (await refused(api.get_raw("/no/such/path"))).not_found


STORIES: Final[tuple[Story, ...]] = (
    create_gives_identity,
    names_are_taken_once,
    put_needs_the_version_it_read,
    status_is_a_room_of_its_own,
    status_can_be_conditional,
    merge_patch_sets_and_removes,
    a_write_of_nothing_is_no_event,
    unknown_fields_are_pruned,
    bad_objects_are_invalid,
    delete_has_preconditions,
    finalizers_hold_an_object,
    dependents_follow_their_owner,
    selectors_select,
    lists_come_in_pages,
    a_watch_replays_from_a_version,
    a_watch_ends_by_itself,
    apply_owns_its_fields,
    tokens_are_asked_for,
    policies_have_no_status,
    other_documents_can_be_had,
)

by_story = pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
