# SPDX-License-Identifier: Apache-2.0
"""The whole loop where nothing is wrong: what is applied is written, proven, and known to the API server."""

from __future__ import annotations

import pytest

from .world import NEW, Place, World, end_of

pytestmark = pytest.mark.integration


def test_network_and_serial_devices_are_updated_and_proven(world: World, place: Place) -> None:
    place.start_fleet(
        {"name": "yard", "chip": "esp32s3"},
        {"name": "porch", "chip": "esp32c3", "transport": "serial"},
        {"name": "attic", "chip": "esp32", "transport": "serial"},
    )
    image = world.push(place.namespace, world.plans(("esp32s3", "esp32c3", "esp32"), NEW), signer=world.signer())
    place.apply(*(place.device(name, job="spring") for name in ("yard", "porch")))
    place.apply(place.device("attic", job="spring", policy="field"), place.job("spring", image))
    job = place.finished("spring", 120)
    tasks = place.tasks("spring")
    assert {name: end_of(task) for name, task in tasks.items()} == {
        "yard": ("Succeeded", "Proven"),
        "porch": ("Succeeded", "Proven"),
        "attic": ("Unproven", "RootOfTrustTooLow"),
    }
    assert job["status"]["counts"]["succeeded"] == 2
    for name in tasks:
        assert place.installs(name) == 1
