# SPDX-License-Identifier: Apache-2.0
"""Which data images a verdict asks for: those that this task writes, and no others."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from attestation.nonce import KeyRing
from attestation.policy import Measurement
from flashjob.gateway.appraisal import context
from flashjob.gateway.case import Keys
from flashjob.wire.gateway import Purpose
from flashjob.wire.pod import Data, Safety, TransportKind
from flashjob.wire.target import DataImage
from tests.unit.gateway.court import Court
from tests.unit.virtual.workbench import GRANT_KEY, Bench, image

FILES = hashlib.sha256(b"files")
KEYS = Keys(KeyRing(current=1, keys={1: b"n" * 32}), GRANT_KEY)


async def asked(transport: TransportKind, data: Data, *, target: bool = True) -> dict[str, frozenset[Measurement]]:
    court = Court(Bench(), image("2.0"), transport=transport, safety=Safety(data=data))
    case = (await court.gather("ns", "t", 1)).case
    storage = DataImage(label="storage", digest=f"sha256:{FILES.hexdigest()}")
    case = replace(case, target=case.target.model_copy(update={"data_images": (storage,)}))
    expected = case.wanted if target else None
    return dict(context(case, KEYS, Purpose.AFTER, 1, expected=expected).data_images or {})


async def test_a_wipe_over_serial_writes_them_and_so_they_are_asked_for() -> None:
    assert await asked(TransportKind.SERIAL, Data.WIPE) == {"storage": frozenset({Measurement(-16, FILES.digest())})}


@pytest.mark.parametrize(
    ("transport", "data", "target"),
    [
        (TransportKind.SERIAL, Data.KEEP, True),
        (TransportKind.NETWORK, Data.WIPE, True),
        (TransportKind.SERIAL, Data.WIPE, False),
    ],
    ids=["kept", "over the network", "before the write"],
)
async def test_what_is_not_written_is_not_asked_for(transport: TransportKind, data: Data, target: bool) -> None:
    assert await asked(transport, data, target=target) == {}
