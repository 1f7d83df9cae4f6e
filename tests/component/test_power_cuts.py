# SPDX-License-Identifier: Apache-2.0
"""Power that fails at a sector of an update: rules and how it is cut in power.py. Few sectors of a small image here; with
`slow`, every 17th of 1.6 MB and the last four; `make bench-power` cuts at every one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .bench import Bench, app, new_app, push
from .power import CHIP, KINDS, SAMPLE_BYTES, Cut, During, Layout, Matrix, matrix, one_slot, workers

SAMPLES = {
    ("serial, two slots", "program"): {0.5: "old", -3: "old", -2: "old", -1: "old"},
    ("serial, two slots", "erase"): {0.5: "old", -2: "new"},
    ("serial, in place", "program"): {0.5: "none"},
    ("serial, in place", "erase"): {0: "old", 0.5: "none"},
    ("network", "program"): {0: "old", 0.5: "old", -3: "old", -2: "old", -1: "old"},
    ("network", "erase"): {0: "old", 0.5: "old", -3: "old", -2: "new", -1: "old"},
}
"""What boots after a cut at a part of the update, or so many sectors before its end: those are the selecting record as
written, as booted first, and as confirmed."""
STRIDE = 17
"""Sectors from one cut to the next: in turn at each of the 16 sectors of a flash block."""
NAMES = [f"{layout}, {during}" for layout, during in KINDS]


@pytest.mark.parametrize(("layout", "during"), KINDS, ids=NAMES)
async def test_rules_1_to_3_at_some_sectors(tmp_path: Path, layout: Layout, during: During) -> None:
    cutter, sample = Matrix(tmp_path, boot_seconds=5), SAMPLES[layout, during]
    end = await cutter.sectors(layout, during, SAMPLE_BYTES)
    sectors = [int(at * end) if 0 <= at < 1 else end + int(at) for at in sample]
    tally = await cutter.cut_all(Cut(layout, during, sector, SAMPLE_BYTES) for sector in sectors)
    assert tally.strays == []
    assert tally.booted == Counter(sample.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("layout", "during"), KINDS, ids=NAMES)
def test_rules_1_to_3_throughout_a_large_image(layout: Layout, during: During) -> None:
    with workers() as pool:
        *_, (wanted, tally) = matrix(pool, layout, during, STRIDE)
    assert tally.strays == []
    assert tally.cuts == tally.proven == wanted > 400 // STRIDE


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def test_one_slot_is_never_overwritten_without_permission(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device("porch-1", CHIP)
    await device.stop()
    one_slot(device, app(CHIP, "1.0.0", 96 * 1024))
    await device.start()
    refused, _ = await bench.flash(device, push(tmp_path, new_app(CHIP), CHIP))
    assert (refused.reason, refused.bytes_written) == ("NoUpdateSlot", 0)
    assert device.counters()["installs"] == 0
