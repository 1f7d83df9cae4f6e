# SPDX-License-Identifier: Apache-2.0
"""The small parts: merge patches, Events, reasons of the pipeline, listing keys, the gateway probe, caches' memory."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from attestation.discovery.listing import Listing, encode_token, mint_listing
from attestation.keys import to_pem
from attestation.policy import Measurement, RootOfTrust
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.errors import Reason as Pipeline
from flashjob.api.meta import Condition
from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.resources import LEASES
from flashjob.operator import project
from flashjob.operator.artifacts import PipelineArtifacts, Refused, refused
from flashjob.operator.caches import Cache
from flashjob.operator.events import event, transitions
from flashjob.operator.gateway_probe import GatewayProbe
from flashjob.operator.listing import Listings, read_keys
from flashjob.operator.reconcile import difference
from flashjob.planning.state import Lease, Refusal
from flashjob.wire.reasons import known
from tests.unit.planning.model import T0, job, merge

JSON = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


@given(OBJECTS, OBJECTS)
def test_a_difference_is_a_merge_patch(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert merge(old, difference(old, new)) == new
    assert difference(new, new) == {}


def condition(kind: str, status: Any, at: str = "2026-01-01T00:00:00Z") -> Condition:
    return Condition(type=kind, status=status, reason="Reason", message="m", last_transition_time=at)


def test_events_are_for_news_only() -> None:
    old = [condition("Validated", "Unknown"), condition("Failed", "False")]
    new = [condition("Validated", "True"), condition("Failed", "True"), condition("Paused", "False")]
    assert [(c.type, bad) for c, bad in transitions(old, new)] == [("Validated", False), ("Failed", True)]
    assert transitions(new, new) == []
    first, again = (event(job(), new[1], True, T0 + n) for n in (0, 9))
    assert first["metadata"]["name"] == again["metadata"]["name"], "a repeated post is a duplicate"
    assert first["type"] == "Warning"


@pytest.mark.parametrize("reason", list(Pipeline))
def test_every_pipeline_error_has_a_reason_of_ours(reason: Pipeline) -> None:
    found = refused(PipelineError(reason, "What and where.", "Do this."))
    assert known(found.refusal.reason) is not None
    assert "Next: Do this." in found.refusal.message
    assert found.passing == (found.refusal.reason == "RegistryUnavailable")


def test_a_job_does_not_read_the_operators_disk() -> None:
    with pytest.raises(Refused) as caught:
        PipelineArtifacts().open("oci:/etc:1", plain_http=False, docker_config=None)
    assert caught.value.refusal.reason == "ImageNotFound"
    with pytest.raises(Refused) as caught:
        PipelineArtifacts().open("no reference", plain_http=False, docker_config=None)
    assert caught.value.refusal.reason == "ImageNotFound"
    with pytest.raises(Refused) as caught:
        PipelineArtifacts().open("registry.example/a:1", plain_http=False, docker_config=b"{")
    assert caught.value.refusal.reason == "RegistryUnauthorized"


def test_a_pull_secret_is_read() -> None:
    secret = b'{"auths": {"registry.example": {"auth": "dXNlcjpwYXNz"}}}'
    found = PipelineArtifacts().open("registry.example/a:1", plain_http=False, docker_config=secret)
    assert found.repository == "registry.example/a"


def test_listing_keys_rotate() -> None:
    old, new = (ec.derive_private_key(n, ec.SECP256R1()) for n in (3, 4))
    said = Listing(
        ueid=b"\x01" + bytes(32),
        measurement=Measurement(-16, bytes(32)),
        application="a",
        version="1",
        boot_id=bytes(16),
        evidence_sha256=bytes(32),
        policy_hash=bytes(32),
        endpoint="h:1",
        tier=RootOfTrust.SIGNED_BOOT,
    )
    tokens = [encode_token(mint_listing(said, key)) for key in (old, new)]
    pems = [to_pem(key.public_key()) for key in (old, new)]
    listings = Listings()
    assert list(listings.read(tokens).values()) == [None, None]
    listings.use(read_keys({"data": {"previous.pub": pems[0], "current.pub": pems[1]}}))
    assert all(listings.read(tokens).values())
    listings.use(read_keys({"data": {"current.pub": pems[1]}}))
    found = listings.read([*tokens, "garbage", tokens[1][:-2]])
    assert [found[t] is not None for t in tokens] == [False, True]
    assert found["garbage"] is None
    with pytest.raises(ValueError, match="flashjob-listing-keys"):
        read_keys({"data": {"current.pub": "no key"}})


async def test_the_gateway_counts_as_unready_until_it_answers() -> None:
    ready = False
    changed: asyncio.Queue[None] = asyncio.Queue()

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=200 if ready else 503, text="as said")

    app = web.Application()
    app.add_routes([web.get("/readyz", readyz)])
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    probe = GatewayProbe(str(server.make_url("/")), None, lambda: changed.put_nowait(None), seconds=0.01)
    assert probe.trouble is not None
    running = asyncio.create_task(probe.run())
    while "503" not in probe.trouble.message:
        await asyncio.sleep(0.01)
    assert changed.empty(), "unready as before"
    ready = True
    await changed.get()
    assert probe.trouble is None
    await server.close()
    await changed.get()
    gone: Refusal | None = probe.trouble
    assert gone is not None
    assert gone.reason == "GatewayUnready"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_own_writes_are_believed_until_the_watch_has_caught_up() -> None:
    api = FakeCluster()
    cache: Cache[Lease] = Cache(api, LEASES, project.lease)
    running = asyncio.create_task(cache.reflector.run())
    await cache.reflector.synced.wait()
    api.swallow(LEASES)
    made = await api.create(
        LEASES,
        "s",
        {"metadata": {"name": "fj-x", "annotations": {"flashjob.dev/device": "n/d"}}, "spec": {"leaseTransitions": 1}},
    )
    for _ in range(10):
        await asyncio.sleep(0)
    assert cache.get(("s", "fj-x")) is None
    cache.wrote(made)
    assert cache.get(("s", "fj-x")) is not None
    await api.replace(LEASES, "s", {**made, "spec": {"leaseTransitions": 2}})
    for _ in range(10):
        await asyncio.sleep(0)
    found = cache.get(("s", "fj-x"))
    assert found is not None
    assert found.transitions == 2
    await api.delete(LEASES, "s", "fj-x")
    for _ in range(10):
        await asyncio.sleep(0)
    assert cache.get(("s", "fj-x")) is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
