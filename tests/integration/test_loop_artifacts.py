# SPDX-License-Identifier: Apache-2.0
"""Artifacts that must not reach a device. All jobs run side by side; each test looks at the end of its own.

What is refused is refused with its own reason, says what to do next where people look, and not one byte of an
application slot was erased or written, by the device's own counter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from firmware_pipeline import api
from flashjob.demo.materials import MAKER_SECRET
from tests.bad_builds import spoil, too_large, with_image_of

from .world import NEW, Obj, Place, World, condition, end_of, stranger

pytestmark = pytest.mark.integration
CHIP = "esp32s3"
SLOT_BYTES = 1_835_008


class Case(NamedTuple):
    """One job. A `refused` of "job" never becomes a task's; one of "device" comes without a pod, one of "pod" with."""

    refused: str
    reason: str


CASES = {
    "unknown-tag": Case("job", "ImageNotFound"),
    "unsigned": Case("device", "Unsigned"),
    "another-signer": Case("device", "SignatureMissing"),
    "job-wants-more": Case("job", "SignatureMissing"),
    "no-signer": Case("device", "SignersNotConfigured"),
    "without-chip": Case("device", "NoMatchingPlatform"),
    "image-of-another-chip": Case("pod", "WrongChip"),
    "spoilt-layer": Case("pod", "DigestMismatch"),
    "too-large": Case("pod", "ImageTooLarge"),
    "too-large-known": Case("device", "ImageTooLarge"),
}


@pytest.fixture(scope="module")
def done(world: World) -> Iterator[Place]:
    """All jobs applied at once."""
    with world.place() as place:
        place.start_fleet(*({"name": name, "chip": CHIP} for name in CASES))
        images = push_all(world, place)
        unsigned_policy = world.materials.policy("field", [CHIP])
        del unsigned_policy["requiredSigners"]
        signer = {"ci.pub": world.materials.public("listing").read_text()}
        place.apply(
            place.policy("nobody", unsigned_policy),
            place.object("v1", "Secret", "more-signers", stringData=signer),
        )
        key = {"name": "more", "secretKeyRef": {"name": "more-signers", "key": "ci.pub"}}
        for name in CASES:
            device = place.device(name, job=name, policy="nobody" if name == "no-signer" else "")
            if name == "too-large-known":
                device["spec"]["hardware"]["slotSize"] = SLOT_BYTES
            job = place.job(name, images[name])
            if name == "job-wants-more":
                job["spec"]["firmware"]["verify"] = {"keys": [key]}
            place.apply(device, job)
        yield place


def push_all(world: World, place: Place) -> dict[str, str]:
    """One repository for each case."""
    good = world.plans([CHIP], NEW)
    c3 = world.plans(["esp32c3"], NEW)
    ci = world.signer()
    space = place.namespace
    large = [too_large(place.directory, CHIP, NEW, MAKER_SECRET.encode(), SLOT_BYTES)]
    images = {
        "unknown-tag": world.push(f"{space}/known", good, signer=ci).replace(f":{NEW}", ":9.9.9"),
        "unsigned": world.push(f"{space}/unsigned", good, signer=None),
        "another-signer": world.push(f"{space}/foreign", good, signer=stranger()),
        "no-signer": world.push(f"{space}/good", good, signer=ci),
        "without-chip": world.push(f"{space}/c3only", c3, signer=ci),
        "image-of-another-chip": world.push(f"{space}/twisted", [with_image_of(good[0], c3[0])], signer=ci),
        "too-large": world.push(f"{space}/large", large, signer=ci),
        "spoilt-layer": world.push(f"{space}/spoilt", world.plans([CHIP], "2.0.1"), signer=ci),
    }
    images["job-wants-more"], images["too-large-known"] = images["no-signer"], images["too-large"]
    spoil(layer_file(world, images["spoilt-layer"]))
    return images


def layer_file(world: World, reference: str) -> Path:
    """Where the registry keeps the application layer of an artifact."""
    store = api.open_store(reference, world.registry_options)
    digest = api.open_chip(store, api.resolve(store, reference), CHIP).app.descriptor.digest.removeprefix("sha256:")
    blobs = world.sandbox.state_dir / "registry" / "blobs"
    return next(path / "data" for path in blobs.rglob(digest) if (path / "data").exists())


@pytest.mark.parametrize("name", CASES)
def test_refused_with_its_own_reason_and_nothing_written(done: Place, name: str) -> None:
    case = CASES[name]
    job = done.finished(name)
    failed = condition(job, "Failed")
    assert (failed["status"], failed["reason"]) == ("True", case.reason)
    assert condition(job, "Succeeded")["status"] == "False"
    tasks = list(done.tasks(name).values())
    if case.refused == "job":
        assert tasks == []
        assert next_step(failed["message"]) in done.kubectl("describe", "flashjob", name)
    else:
        assert [end_of(task) for task in tasks] == [("Rejected", case.reason)]
        described = done.kubectl("describe", "flashtask", tasks[0]["metadata"]["name"])
        assert next_step(tasks[0]["status"]["message"])[:40] in " ".join(described.split())
        assert [sample["reason"] for sample in job["status"]["failures"]] == [case.reason]
    assert (case.refused == "pod") == bool(pods_of(done, name))
    assert done.installs(name) == 0
    assert done.untouched(name)


def next_step(message: str) -> str:
    """What a message says is to be done; a message without it fails."""
    _, found, step = message.partition("Next: ")
    assert found, message
    assert step, message
    return step


def pods_of(place: Place, job: str) -> list[Obj]:
    return place.items("pods", f"flashjob.dev/job={job}")
