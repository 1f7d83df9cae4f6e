# SPDX-License-Identifier: Apache-2.0
"""The machinery fails in the middle of a job: registry, gateway, operator, the job itself. Devices do not notice.

What is awaited is an event, never a time: a permit in a task's report, the n-th change of a kind, a device's first byte.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator

import pytest

from flashjob.operator.project import assigned

from .world import NEW, Obj, Place, World, condition, end_of, pods_held, registry_down

pytestmark = pytest.mark.integration
FIVE = (
    {"name": "one", "chip": "esp32s3"},
    {"name": "two", "chip": "esp32c3"},
    {"name": "three", "chip": "esp32s2"},
    {"name": "four", "chip": "esp32c3", "transport": "serial"},
    {"name": "five", "chip": "esp32s2", "transport": "serial"},
)
POINTS = 20
DEFAULT_POINTS = 5


def permits(task: Obj) -> list[Obj]:
    found: list[Obj] = task.get("status", {}).get("report", {}).get("permits", [])
    return found


def first_permit(place: Place) -> str:
    """The name of a task as soon as one has its permit."""
    return place.until("flashtasks", lambda tasks: next((n for n, t in tasks.items() if permits(t)), None))


def programmed(place: Place, device: str) -> int:
    """Bytes that the device's slots took, by its own counter."""
    parts = place.counters(device)["partitions"]
    return sum(part["programmed"] for name, part in parts.items() if name.startswith("ota_"))


def first_bytes(place: Place, device: str) -> int:
    """How many they are, as soon as a slot has begun to take an image: some time after the permit."""
    deadline = time.monotonic() + 30
    while not (taken := programmed(place, device)):
        assert time.monotonic() < deadline, place.story()
        time.sleep(0.02)
    return taken


def test_registry_down_and_back(world: World, place: Place) -> None:
    place.start_fleet({"name": "yard", "chip": "esp32s3"})
    image = world.push(place.namespace, world.plans(("esp32s3",), NEW), signer=world.signer())
    with registry_down(world):
        place.apply(place.device("yard", job="spring"), place.job("spring", image))
        waiting = place.until(
            "flashjobs",
            lambda jobs: (
                condition(jobs["spring"], "ArtifactVerified").get("reason") == "RegistryUnavailable" and jobs["spring"]
            ),
        )
        assert condition(waiting, "Finished")["status"] == "False"
        assert "Next: " in condition(waiting, "ArtifactVerified")["message"]
        assert place.untouched("yard")
    job = place.finished("spring")
    assert condition(job, "Succeeded")["status"] == "True"
    assert place.installs("yard") == 1


def test_registry_down_when_the_pod_fetches(world: World, place: Place) -> None:
    place.start_fleet({"name": "yard", "chip": "esp32s3"})
    image = world.push(place.namespace, world.plans(("esp32s3",), NEW), signer=world.signer())
    timeouts = {"startSeconds": 60, "fetchSeconds": 4}
    retries = {"retries": {"limit": 5, "backoffSeconds": 1}}
    with pods_held(world):
        place.apply(place.device("yard", job="spring"))
        place.apply(place.job("spring", image, timeouts=timeouts, strategy=retries))
        place.until("pods", bool)
        world.sandbox.registry.halt()
    try:
        failed = place.until("flashtasks", lambda tasks: next(filter(last_attempt, tasks.values()), None))
        assert last_attempt(failed)["reason"] in ("RegistryUnavailable", "FetchTimeout")
        assert "Next: " in last_attempt(failed)["message"]
        assert place.untouched("yard")
    finally:
        world.sandbox.registry.resume()
    job = place.finished("spring")
    assert condition(job, "Succeeded")["status"] == "True", place.story()
    assert place.installs("yard") == 1


def last_attempt(task: Obj) -> Obj:
    found: Obj = task.get("status", {}).get("lastAttempt", {})
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_pod_taken_away_in_mid_write_may_still_write_until_its_deadline(world: World, place: Place) -> None:
    place.start_fleet({**FIVE[3], "simulateRate": True})
    image = world.push(place.namespace, world.plans(("esp32c3",), NEW), signer=world.signer())
    timeouts = {"startSeconds": 10, "fetchSeconds": 5, "writeSeconds": 15, "bootSeconds": 8}
    place.apply(place.device("four", job="spring"), place.job("spring", image, timeouts=timeouts))
    taken = first_bytes(place, "four")
    (pod,) = place.items("pods")
    place.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    lost = place.until(
        "flashtasks", lambda tasks: next((t for t in tasks.values() if t["status"].get("phase") == "Unknown"), None)
    )
    assert lost["status"]["reason"] == "PodLost"
    assert "Next: " in lost["status"]["message"]
    job = place.finished("spring", 200)
    assert condition(job, "Succeeded")["status"] == "True", place.story()
    (task,) = place.tasks("spring").values()
    assert last_attempt(task)["reason"] == "PodLost"
    first, second = permits(task)
    assert second["fence"] > first["fence"]
    assert place.installs("four") == 1, "sectors that the first pod wrote are not written again"
    assert programmed(place, "four") > taken, "the rest is"


def test_gateway_down_in_mid_job(world: World, place: Place) -> None:
    place.start_fleet(*FIVE[:2])
    image = world.push(place.namespace, world.plans(("esp32s3", "esp32c3"), NEW), signer=world.signer())
    one_by_one = {"maxInFlight": 1, "retries": {"limit": 1, "backoffSeconds": 0}}
    place.apply(*(place.device(name, job="spring") for name in ("one", "two")))
    place.apply(place.job("spring", image, strategy=one_by_one))
    begun = first_permit(place)
    world.stack.stop(world.stack.gateway)
    try:
        waiting = place.until("flashtasks", lambda tasks: next(filter(held, tasks.values()), None))
        assert waiting["metadata"]["name"] != begun
        assert "Next: " in waiting["status"]["waiting"]["message"]
        assert permits(waiting) == []
    finally:
        world.stack.start_gateway()
    job = place.finished("spring", 120)
    assert condition(job, "Succeeded")["status"] == "True", place.story()
    assert [place.installs(name) for name in ("one", "two")] == [1, 1]


def held(task: Obj) -> bool:
    waiting: Obj = task.get("status", {}).get("waiting", {})
    return bool(waiting.get("reason") == "GatewayUnready")


def test_deleted_and_applied_again_while_the_old_children_exist(world: World, place: Place) -> None:
    place.start_fleet(FIVE[3])
    image = world.push(place.namespace, world.plans(("esp32c3",), NEW), signer=world.signer())
    job = place.job("spring", image)
    place.apply(place.device("four", job="spring"), job)
    old = first_permit(place)
    keep = '{"metadata":{"finalizers":["flashjob.test/keep"]}}'
    place.kubectl("patch", "flashtask", old, "--type=merge", "-p", keep)
    place.kubectl("delete", "flashjob", "spring", "--timeout=60s")
    assert [task["metadata"]["name"] for task in place.items("flashtasks")] == [old]
    assert place.installs("four") == 1, "what had its permit was left to finish"
    place.apply(job)
    again = place.finished("spring")
    assert condition(again, "Succeeded")["status"] == "True"
    tasks = {task["metadata"]["name"]: task for task in place.items("flashtasks")}
    assert end_of(tasks.pop(old)) == ("Succeeded", "Proven")
    assert [end_of(task) for task in tasks.values()] == [("Skipped", "AlreadyRunning")]
    assert place.installs("four") == 1
    place.kubectl("patch", "flashtask", old, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


@pytest.fixture(scope="module")
def five(world: World) -> Iterator[Place]:
    """Five devices that get one release after the other."""
    with world.place() as place:
        place.start_fleet(*FIVE)
        place.apply(*(place.device(device["name"], job="all") for device in FIVE))
        yield place


@pytest.mark.parametrize(
    "point", [pytest.param(n, marks=[pytest.mark.slow] if n >= DEFAULT_POINTS else []) for n in range(POINTS)]
)
def test_operator_killed_anywhere_each_device_is_written_once(world: World, five: Place, point: int) -> None:
    chosen = random.Random(point)
    kind, most = chosen.choice((("flashjobs", 6), ("flashtasks", 20), ("flashtasks", 20), ("pods", 20)))
    after = chosen.randint(1, most)
    before = {device["name"]: five.installs(device["name"]) for device in FIVE}
    version, name = f"3.0.{point}", f"kill-{point}"
    chips = sorted({device["chip"] for device in FIVE})
    image = world.push(
        f"{five.namespace}/kill", world.plans(chips, version), tag=version, sequence=3 + point, signer=world.signer()
    )
    everyone = {"selector": {"matchLabels": {"update": "all"}}}
    five.apply(five.job(name, image, devices=everyone))
    changes = 0

    def enough(objects: dict[str, Obj]) -> bool:
        nonlocal changes
        changes += 1
        jobs = objects if kind == "flashjobs" else {}
        over = name in jobs and condition(jobs[name], "Finished").get("status") == "True"
        tasks = [t for t in objects.values() if t.get("spec", {}).get("job", {}).get("name") == name]
        done = len(tasks) == len(FIVE) and all("finishedAt" in t.get("status", {}) for t in tasks)
        pods = [p for p in objects.values() if p["metadata"].get("labels", {}).get("flashjob.dev/job") == name]
        begun = sum(len(assigned(pod)) for pod in pods)  # network devices share a pod
        ended = begun >= len(FIVE) and all(p["status"]["phase"] in ("Succeeded", "Failed") for p in pods)
        return changes > after or over or done or ended

    five.until(kind, enough)
    operator = world.stack.operator
    assert operator is not None
    operator.send_signal(signal.SIGUSR1)  # the tether's word for SIGKILL
    assert operator.wait(10) not in (None, 0)
    world.restart_operator()
    job = five.finished(name, 120)
    assert condition(job, "Succeeded")["status"] == "True", (kind, after, five.story())
    assert {end_of(task) for task in five.tasks(name).values()} == {("Succeeded", "Proven")}
    assert {device: five.installs(device) - count for device, count in before.items()} == dict.fromkeys(before, 1)
