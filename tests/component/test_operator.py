# SPDX-License-Identifier: Apache-2.0
"""The operator on an API server in memory: jobs from apply to the end, and everything that may come between."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from firmware_pipeline import api
from firmware_pipeline.attaching import ALL_CHIPS, attaching
from firmware_pipeline.sbom import read_sbom
from firmware_pipeline.signing.keys import LocalSigner, public_pem
from flashjob.api.meta import FINALIZER
from flashjob.cluster import resources as r
from flashjob.cluster.faults import Call
from flashjob.cluster.kubeapi import ApiError
from flashjob.planning.messages import refuse
from flashjob.wire.reasons import Reason
from tests.component.operator_world import HOST, NS, SYSTEM, Board, World
from tests.unit.firmware import builds
from tests.unit.firmware.signed import CYCLONEDX

BUILDER = "https://ci.example/builders/1"
SIGNER = LocalSigner(ec.derive_private_key(7, ec.SECP256R1()))
STRANGER = LocalSigner(ec.derive_private_key(8, ec.SECP256R1()))
RELEASE = api.Release(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), 21)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real artifacts: signed, unsigned, signed by another key, and without esp32s3."""
    root = tmp_path_factory.mktemp("artifacts")
    plans = {}
    for chip in ("esp32s3", "esp32c3"):
        (root / chip).mkdir()
        plans[chip] = builds.plan(root / chip, chip)
    made = {}
    for name, signer, chips in (
        ("good", SIGNER, ("esp32s3", "esp32c3")),
        ("unsigned", None, ("esp32s3",)),
        ("foreign", STRANGER, ("esp32s3",)),
        ("c3only", SIGNER, ("esp32c3",)),
    ):
        folder = root / name
        api.push([plans[c] for c in chips], f"oci:{folder}:2.1.0", signer=signer, release=RELEASE)
        made[f"{HOST}/{name}"] = folder
    sbom = read_sbom(json.dumps(CYCLONEDX).encode(), Path("sbom.json"))
    made[f"{HOST}/documented"] = root / "documented"
    api.push(
        list(plans.values()),
        f"oci:{root}/documented:2.1.0",
        signer=SIGNER,
        release=RELEASE,
        attach=attaching([(ALL_CHIPS, sbom)], BUILDER, {}, SIGNER),
    )
    return made


@pytest.fixture
async def world(folders: dict[str, Path]) -> AsyncIterator[World]:
    made = World(folders, public_pem(SIGNER.public_key).decode())
    await made.publish_listing_key()
    await made.start_operator()
    yield made
    await made.kill_operator()
    assert made.overlaps == [], "two writers on one device"


def end(world: World, board: Board) -> tuple[str, str]:
    status = world.task_of(board)["status"]
    return status["phase"], status["reason"]


async def test_one_device_to_succeeded(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    await world.job()
    await world.run_job()
    assert end(world, board) == ("Succeeded", "Proven")
    job = world.get(r.FLASHJOBS, "porch")["status"]
    assert job["phase"] == "Succeeded"
    assert job["progress"] == "1/1"
    assert job["firmware"]["signers"] == ["ci"], "those whose signature the policy demanded"
    assert {c["type"]: c["status"] for c in job["conditions"]} == {
        "Validated": "True",
        "ArtifactVerified": "True",
        "Progressing": "False",
        "Paused": "False",
        "Finished": "True",
        "Succeeded": "True",
        "Failed": "False",
        "Reconciling": "False",
        "Stalled": "False",
    }
    status = world.device(board)["status"]
    assert status["firmware"]["version"] == "2.1.0"
    assert status["firmware"]["digest"] == job["firmware"]["digest"]
    assert status["floors"] == {"securityVersion": 0, "sequence": 21, "bootCount": 7}
    assert status["hardware"] == {"chip": "esp32s3", "revision": 2, "mac": board.mac}
    assert [o["phase"] for o in status["outcomes"]] == ["Succeeded"]
    assert board.writes == 1
    pod = world.api.all(r.PODS, NS)[0]
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "node1"}
    assert pod["spec"]["containers"][0]["resources"]["limits"]["akri.sh/ports-b1"] == "1"


async def test_at_most_eight_writes_per_device(world: World) -> None:
    await world.policy()
    boards = [await world.board(f"b{n}", serial=n % 2 == 0) for n in range(6)]
    await world.job()
    world.api.calls.clear()
    await world.run_job()
    for board in boards:
        name = world.task_of(board)["metadata"]["name"]

        def about(call: Call, board: Board = board, name: str = name) -> bool:
            return call.verb in ("create", "patch", "replace", "apply") and (
                call.name.startswith(name)
                or (call.resource == r.DEVICES and call.name == board.name)
                or (call.resource == r.LEASES and call.name.endswith(world_lease(board)))
            )

        kubelet = [c for c in world.api.calls if c.resource == r.PODS and c.verb == "patch" and about(c)]
        ours = [c for c in world.api.calls if about(c) and c not in kubelet]
        assert len(ours) <= 8, [(c.verb, str(c.resource), c.subresource) for c in ours]


def world_lease(board: Board) -> str:
    from flashjob.cluster.lease import lease_name

    return lease_name(board.id)


@pytest.mark.parametrize(
    ("script", "phase", "reason", "writes"),
    [
        (["lies"], "Failed", "MeasurementMismatch", 1),
        (["weak"], "Unproven", "RootOfTrustTooLow", 1),
        (["claims proven"], "Failed", "BootIdMismatch", 1),
        (["says done", "says done", "says done"], "Failed", "PodFailed", 1),
        (["stays away"], "Failed", "RediscoveryTimeout", 1),
        (["fails WrongDevice"], "Rejected", "WrongDevice", 0),
        (["fails ImageTooLarge"], "Rejected", "ImageTooLarge", 0),
        (["fails BeforeAttestationFailed"], "Rejected", "BeforeAttestationFailed", 0),
        (["fails PortSilent"] * 3, "Failed", "PortSilent", 0),
        (["breaks TransportLost", "good"], "Succeeded", "Proven", 1),
        (["rejected ConfirmTimeout", "good"], "Succeeded", "Proven", 1),
        (["rejected EvidenceReplayed"], "Failed", "EvidenceReplayed", 1),
        (["rejected EvidenceOfAnotherDevice"], "Failed", "EvidenceOfAnotherDevice", 1),
        (["never starts", "good"], "Succeeded", "Proven", 1),
        (["vanishes", "good"], "Succeeded", "Proven", 1),
        (["is judged and vanishes"], "Succeeded", "Proven", 1),
    ],
)
async def test_ends(world: World, script: list[str], phase: str, reason: str, writes: int) -> None:
    await world.policy()
    board = await world.board("b1", script=script)
    await world.job()
    await world.run_job()
    assert end(world, board) == (phase, reason)
    assert board.writes == writes
    job = world.get(r.FLASHJOBS, "porch")["status"]
    expected = {"Succeeded": "Succeeded", "Unproven": "Unproven"}.get(phase, "Failed")
    assert job["phase"] == expected
    assert (world.condition("Succeeded")["status"] == "True") == (phase == "Succeeded")
    if phase not in ("Succeeded", "Unproven"):
        assert [f["reason"] for f in job["failures"]] == [reason]
        assert world.condition("Failed")["reason"] == reason
        assert "Next:" in world.task_of(board)["status"]["message"]
    confirmed = phase in ("Succeeded", "Unproven") or reason == "RediscoveryTimeout"
    assert ("firmware" in world.device(board).get("status", {})) == confirmed


async def test_running_the_target_already_is_skipped(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    await world.job("first")
    await world.run_job("first")
    await world.job("second")
    await world.run_job("second")
    tasks = {t["spec"]["job"]["name"]: t["status"] for t in world.tasks()}
    assert tasks["second"]["phase"] == "Skipped"
    assert board.writes == 1
    assert world.condition("Succeeded", "second")["status"] == "True"


@pytest.mark.parametrize(
    ("image", "job_reason"),
    [
        (f"{HOST}/nowhere:1", "ImageNotFound"),
        (f"{HOST}/good:9.9.9", "ImageNotFound"),
        (f"{HOST}/unsigned:2.1.0", "Unsigned"),
        (f"{HOST}/foreign:2.1.0", "SignatureMissing"),
        (f"{HOST}/c3only:2.1.0", "NoMatchingPlatform"),
    ],
)
async def test_artifacts_that_are_refused(world: World, image: str, job_reason: str) -> None:
    await world.policy()
    board = await world.board("b1")
    await world.job(image=image)
    await world.run_job()
    assert world.condition("Failed")["status"] == "True"
    assert world.condition("Failed")["reason"] == job_reason
    assert world.condition("Failed")["message"]
    assert board.writes == 0
    assert world.api.all(r.PODS, NS) == []


@pytest.mark.parametrize(
    ("image", "demands", "reason"),
    [
        ("good", {"requireSbom": True}, "SbomMissing"),
        ("good", {"requireProvenance": True}, "ProvenanceMissing"),
        ("good", {"builders": [BUILDER]}, "ProvenanceMissing"),
        ("good", {"requiredAnnotations": [{"key": "stage", "value": "prod"}]}, "AnnotationMissing"),
        ("documented", {"builders": ["https://other.example"]}, "BuilderNotTrusted"),
        ("documented", {"requireSbom": True, "requireProvenance": True, "builders": [BUILDER]}, None),
    ],
)
async def test_what_a_policy_wants_signed_beside_the_artifact(
    world: World, image: str, demands: dict[str, Any], reason: str | None
) -> None:
    await world.policy(**demands)
    board = await world.board("b1")
    await world.job(image=f"{HOST}/{image}:2.1.0")
    await world.run_job()
    if reason is None:
        assert end(world, board)[0] == "Succeeded"
        return
    condition = world.condition("Failed")
    assert condition["reason"] == reason
    assert "AttestationPolicy lab" in condition["message"]
    assert board.writes == 0
    assert world.api.all(r.PODS, NS) == []


async def test_no_signer_configured(world: World) -> None:
    await world.policy(signers=False)
    board = await world.board("b1")
    await world.job()
    await world.run_job()
    assert end(world, board) == ("Rejected", "SignersNotConfigured")


async def test_policy_missing_and_suspended_and_quarantined(world: World) -> None:
    await world.policy()
    missing = await world.board("b1", policy="nobody")
    suspended = await world.board("b2")
    held = await world.board("b3")
    good = await world.board("b4")
    await world.api.patch(r.DEVICES, NS, "b2", {"spec": {"suspended": True}}, field_manager="people")
    quarantine = {"reason": "EvidenceReplayed", "since": "2026-01-01T00:00:00Z"}
    await world.api.patch_status(r.DEVICES, NS, "b3", {"quarantine": quarantine}, field_manager="op")
    await world.job()
    await world.run_job()
    assert end(world, missing) == ("Rejected", "PolicyMissing")
    assert end(world, suspended) == ("Rejected", "Suspended")
    assert end(world, held) == ("Quarantined", "Quarantined")
    assert end(world, good) == ("Succeeded", "Proven")
    assert world.condition("Failed")["reason"] == "SomeFailed"
    assert world.get(r.FLASHJOBS, "porch")["status"]["counts"]["total"] == 4


async def test_an_id_enrolled_twice(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    twin = world.device(board)
    await world.api.create(r.DEVICES, "elsewhere", {**twin, "metadata": {"name": "twin"}})
    await world.job()
    await world.run_job()
    assert end(world, board) == ("Rejected", "IdentityConflict")
    assert board.writes == 0


async def test_a_selection_that_matches_nothing(world: World) -> None:
    await world.policy()
    await world.job(devices={"selector": {"matchLabels": {"site": "nowhere"}}})
    await world.run_job()
    assert world.condition("Validated")["reason"] == "NoDevices"
    assert world.condition("Failed")["status"] == "True"


async def test_an_instance_of_nobody(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    await world.tick()
    await world.api.delete(r.DEVICES, NS, board.name)
    await world.job(devices={"akri": {"configuration": "app"}})
    await world.run_job()
    assert world.condition("Failed")["reason"] == "DeviceNotEnrolled"


async def test_selected_by_akri_configuration(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    await world.tick()
    await world.job(devices={"akri": {"configuration": "app"}})
    await world.run_job()
    assert end(world, board) == ("Succeeded", "Proven")


async def test_registry_down_and_back(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    world.shop.down = True
    await world.job()
    for _ in range(30):
        await world.tick()
    assert world.condition("ArtifactVerified")["reason"] == "RegistryUnavailable"
    assert world.condition("Finished")["status"] == "False"
    assert world.shop.opened < 10, "it backs off"
    world.shop.down = False
    await world.run_job()
    assert end(world, board) == ("Succeeded", "Proven")


async def test_the_tag_is_resolved_once(world: World) -> None:
    await world.policy()
    await world.board("b1", script=["fails PortSilent", "good"])
    await world.job()
    await world.run_until(lambda: bool(world.tasks()))
    pinned = world.get(r.FLASHJOBS, "porch")["status"]["firmware"]["digest"]
    world.shop.folders[f"{HOST}/good"] = world.shop.folders[f"{HOST}/foreign"]
    await world.restart()
    await world.run_job()
    assert world.get(r.FLASHJOBS, "porch")["status"]["firmware"]["digest"] == pinned
    assert world.condition("Succeeded")["status"] == "True"


async def test_a_token_by_another_key_is_no_rediscovery(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    stranger = {"data": {"current.pub": public_pem(STRANGER.public_key).decode()}}
    await world.api.patch(r.CONFIG_MAPS, SYSTEM, "flashjob-listing-keys", stranger, field_manager="people")
    await world.job()
    await world.run_job()
    assert end(world, board) == ("Failed", "RediscoveryTimeout")


async def test_gateway_unready_starts_nothing(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    world.probe.trouble = refuse(Reason.GATEWAY_UNREADY, "it is away")
    await world.job()
    for _ in range(15):
        await world.tick()
    assert world.api.all(r.PODS, NS) == []
    assert world.condition("Progressing")["reason"] == "GatewayUnready"
    assert world.task_of(board)["status"]["waiting"]["reason"] == "GatewayUnready"
    world.probe.trouble = None
    world._wake((NS, "porch"))
    await world.run_job()
    assert end(world, board) == ("Succeeded", "Proven")
    assert "waiting" not in world.task_of(board)["status"]


async def test_a_pod_that_the_api_server_refuses_is_no_silent_state(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    world.api.fail(ApiError(403, "Forbidden", "exceeded quota: pods=0"), verb="create", resource=r.PODS, times=20)
    await world.job()
    await world.run_until(lambda: "waiting" in (world.tasks() or [{"status": {}}])[0]["status"])
    waiting = world.task_of(board)["status"]["waiting"]
    assert waiting["reason"] == "PodPending"
    assert "exceeded quota" in waiting["message"]
    await world.run_job()
    assert end(world, board) == ("Succeeded", "Proven")
    assert world.task_of(board)["status"]["attempt"] == 1, "nothing was attempted meanwhile"


async def test_a_lease_of_somebody_else_is_never_taken(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    body = {
        "metadata": {
            "name": world_lease(board),
            "labels": {"flashjob.dev/device-lock": "true"},
            "annotations": {"flashjob.dev/device": f"{NS}/b1"},
        },
        "spec": {"holderIdentity": "somebody"},
    }
    await world.api.create(r.LEASES, SYSTEM, body)
    await world.job()
    for _ in range(20):
        await world.tick()
    assert world.api.all(r.PODS, NS) == []
    assert world.get(r.LEASES, world_lease(board), SYSTEM)["spec"]["holderIdentity"] == "somebody"


async def test_paused_and_resumed(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    await world.job(paused=True)
    for _ in range(5):
        await world.tick()
    assert world.api.all(r.PODS, NS) == []
    assert world.condition("Paused")["status"] == "True"
    await world.api.patch(r.FLASHJOBS, NS, "porch", {"spec": {"paused": False}}, field_manager="people")
    await world.run_job()
    assert end(world, board) == ("Succeeded", "Proven")


async def test_port_missing_then_plugged_in(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    await world.api.delete(r.INSTANCES, "akri", "ports-b1")
    await world.job()
    for _ in range(5):
        await world.tick()
    assert world.task_of(board)["status"]["waiting"]["reason"] == "PortNotFound"
    await world.port("b1")
    await world.run_job()
    assert end(world, board) == ("Succeeded", "Proven")


@pytest.mark.parametrize(("ports", "reason"), [(0, "PortNotFound"), (2, "PortAmbiguous")])
async def test_no_port_in_time(world: World, ports: int, reason: str) -> None:
    await world.policy()
    board = await world.board("b1")
    if ports:
        await world.port("b1", "-again")
    else:
        await world.api.delete(r.INSTANCES, "akri", "ports-b1")
    await world.job()
    await world.run_job()
    assert end(world, board)[1] == reason
    assert board.writes == 0


@pytest.mark.parametrize("on_busy", ["Wait", "Fail"])
async def test_a_foreign_pod_uses_the_device(world: World, on_busy: str) -> None:
    await world.policy()
    board = await world.board("b1")
    broker = {"containers": [{"name": "b", "resources": {"limits": {"akri.sh/ports-b1": "1"}}}]}
    await world.api.create(r.PODS, "other", {"metadata": {"name": "broker"}, "spec": broker})
    await world.job(strategy={"maxInFlight": 1, "onBusy": on_busy})
    for _ in range(15):
        await world.tick()
    if on_busy == "Fail":
        assert end(world, board) == ("Rejected", "DeviceInUse")
        assert "other/broker" in world.task_of(board)["status"]["message"]
        return
    assert world.task_of(board)["status"]["waiting"]["reason"] == "DeviceInUse"
    await world.api.delete(r.PODS, "other", "broker")
    await world.run_job()
    assert end(world, board) == ("Succeeded", "Proven")


async def test_never_more_in_flight_than_allowed(world: World) -> None:
    await world.policy()
    boards = [await world.board(f"b{n}", script=["never starts"] if n == 2 else []) for n in range(6)]
    await world.job(strategy={"maxInFlight": 2, "retries": {"limit": 2, "backoffSeconds": 1}})
    await world.run_job()
    assert world.peak == 2
    assert [b.writes for b in boards] == [1] * 6
    assert {end(world, b)[0] for b in boards} == {"Succeeded"}


@pytest.mark.parametrize("point", range(20))
@pytest.mark.parametrize("after", [False, True])
async def test_killed_anywhere_each_device_is_written_once(world: World, point: int, after: bool) -> None:
    await world.policy()
    boards = [await world.board(f"b{n}", serial=n != 3) for n in range(5)]
    world.mortal.die_at, world.mortal.die_after = 1 + point * 2, after
    await world.job(strategy={"maxInFlight": 3})
    await world.run_job()
    assert world.restarts == 1, "the crash happened"
    assert {end(world, b) for b in boards} == {("Succeeded", "Proven")}
    assert [b.writes for b in boards] == [1] * 5
    assert world.peak <= 3


async def test_deleted_and_applied_again_while_old_children_exist(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    first = await world.job()
    await world.run_until(lambda: bool(board.writers))
    await world.api.delete(r.FLASHJOBS, NS, "porch")
    for _ in range(20):
        await world.tick()
        if not world.api.all(r.FLASHJOBS, NS):
            break
    assert world.api.all(r.FLASHJOBS, NS) == []
    assert board.writes == 1, "what had its permit was left to finish"
    assert len(world.tasks()) == 1, "the old children still exist"
    second = await world.job(image=f"{HOST}/good:2.1.0")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    await world.run_job()
    mine = [t for t in world.tasks() if t["spec"]["job"]["uid"] == second["metadata"]["uid"]]
    assert [t["status"]["phase"] for t in mine] == ["Skipped"]
    assert board.writes == 1
    world.api.collect_garbage()


async def test_deletion_waits_for_a_permitted_pod_and_ends_others(world: World) -> None:
    await world.policy()
    board = await world.board("b1", script=["never starts"])
    await world.job()
    await world.run_until(lambda: bool(world.api.all(r.PODS, NS)))
    await world.api.delete(r.FLASHJOBS, NS, "porch")
    for _ in range(10):
        await world.tick()
    assert world.api.all(r.FLASHJOBS, NS) == []
    assert board.writes == 0
    outcomes = world.device(board)["status"]["outcomes"]
    assert [o["reason"] for o in outcomes] == ["JobDeleted"], "so the device is free at once"


async def test_the_job_goes_when_its_time_is_over(world: World) -> None:
    await world.policy()
    await world.board("b1")
    await world.job(ttlSecondsAfterFinished=30)
    await world.run_job()
    for _ in range(45):
        await world.tick()
    assert world.api.all(r.FLASHJOBS, NS) == []


async def test_nothing_starts_without_our_finalizer(world: World) -> None:
    await world.policy()
    await world.board("b1")
    await world.job()
    await world.api.patch(r.FLASHJOBS, NS, "porch", {"metadata": {"finalizers": None}}, field_manager="x")
    for _ in range(5):
        await world.tick()
    assert world.api.all(r.PODS, NS) == []
    await world.api.patch(r.FLASHJOBS, NS, "porch", {"metadata": {"finalizers": [FINALIZER]}}, field_manager="x")
    await world.run_job()
    assert world.condition("Succeeded")["status"] == "True"


async def test_two_jobs_want_one_device(world: World) -> None:
    await world.policy()
    board = await world.board("b1")
    await world.job("one")
    await world.job("two")
    await world.run_until(lambda: world.finished("one") and world.finished("two"))
    assert sorted(t["status"]["phase"] for t in world.tasks()) == ["Skipped", "Succeeded"]
    assert board.writes == 1


async def test_events_tell_the_transitions_once(world: World) -> None:
    await world.policy()
    await world.board("b1")
    await world.job()
    await world.run_job()
    said = sorted(e["message"].split(":")[0] for e in world.api.all(r.EVENTS, NS))
    assert said == ["ArtifactVerified=True", "Succeeded=True", "Validated=True"]


async def test_the_lock_names_its_attempt(world: World) -> None:
    await world.policy()
    board = await world.board("b1", script=["fails PortSilent", "good"])
    await world.job()
    await world.run_job()
    lease = world.get(r.LEASES, world_lease(board), SYSTEM)
    task = world.task_of(board)["metadata"]["name"]
    assert lease["spec"]["holderIdentity"] == f"{NS}/{task}/2"
    assert lease["spec"]["leaseTransitions"] == 2
    assert lease["metadata"]["annotations"]["flashjob.dev/device"] == f"{NS}/b1"


async def test_devices_on_the_network_share_a_pod_and_none_ends_another(world: World) -> None:
    await world.policy()
    boards = [await world.board(f"b{n}", serial=False) for n in range(4)]
    boards[1].script = ["fails WrongChip"]
    boards[2].script = ["breaks TransportLost"]
    await world.job(strategy={"maxInFlight": 4, "retries": {"limit": 1, "backoffSeconds": 1}})
    await world.run_job()
    pods = {pod["metadata"]["name"] for pod in world.api.all(r.PODS, NS)}
    tasks = [world.task_of(board)["status"] for board in boards]
    assert [t["phase"] for t in tasks] == ["Succeeded", "Rejected", "Succeeded", "Succeeded"]
    assert tasks[1]["reason"] == "WrongChip"
    assert tasks[0]["pod"] == tasks[1]["pod"] == tasks[3]["pod"] != tasks[2]["pod"], "one for all, one for the retry"
    assert {t["pod"] for t in tasks} == pods
    assert [board.writes for board in boards] == [1, 0, 1, 1]


@pytest.mark.parametrize("point", range(4, 19, 3))
@pytest.mark.parametrize("after", [False, True])
async def test_killed_anywhere_devices_that_share_a_pod_are_written_once(world: World, point: int, after: bool) -> None:
    await world.policy()
    boards = [await world.board(f"b{n}", serial=False) for n in range(3)]
    world.mortal.die_at, world.mortal.die_after = point, after
    await world.job(strategy={"maxInFlight": 3})
    await world.run_job()
    assert world.restarts == 1, "the crash happened"
    assert {end(world, b) for b in boards} == {("Succeeded", "Proven")}
    assert [b.writes for b in boards] == [1] * 3
    assert world.peak <= 3
