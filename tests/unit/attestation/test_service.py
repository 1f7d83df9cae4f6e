# SPDX-License-Identifier: Apache-2.0
"""The service's answers, by the rules of service/app.py and service/judge.py: a real server, a real client."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestation.ear import Status
from tests.unit.attestation.serving import Device, Files, Running, running

DEVICE = Device()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, [DEVICE])


@pytest.fixture
async def service(files: Files) -> AsyncIterator[Running]:
    async with running(files) as found:
        yield found


async def test_an_honest_device_gets_an_affirming_result(service: Running) -> None:
    nonce = await service.nonce(DEVICE.ueid)
    result = await service.result(DEVICE.answer(nonce), DEVICE.ueid, nonce)
    assert (result.status, result.reason) == (Status.AFFIRMING, "accepted")
    assert result.ueid.hex() == DEVICE.ueid
