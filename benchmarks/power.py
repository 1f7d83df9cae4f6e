# SPDX-License-Identifier: Apache-2.0
"""Power that fails at every sector of an update of 1.6 MB: who boots afterwards, and how the next attempt ends."""

from __future__ import annotations

import sys
import time
from typing import Final

from benchmarks.common import Report, main
from tests.component.power import KINDS, Tally, matrix, workers

SMOKE_STEP: Final = 200
"""Sectors between two cuts of a short run; the last few are always cut at."""


def measure(report: Report) -> None:
    """Each layout, while flash is programmed and while it is erased: see tests/component/power.py."""
    total = Tally()
    with workers() as pool:
        for layout, during in KINDS:
            kind, started = f"{layout}, {during}", time.monotonic()
            tally = Tally()
            for wanted, tally in matrix(pool, layout, during, SMOKE_STEP if report.smoke else 1):
                report.say(
                    f"  {kind}: {tally.cuts} of {wanted} cuts, {tally.proven} proven, {len(tally.strays)} strays"
                )
            for stray in tally.strays:
                report.say(f"  stray: {stray}")
            boots = {f"{image} booted": tally.booted[image] for image in ("old", "new", "none")}
            proven = {"next attempt proven": tally.proven, "seconds": time.monotonic() - started}
            report.figure(kind, {"cuts": tally.cuts, **boots, **proven})
            total.add(tally)
    report.bar("next attempt proven, per cent of cuts", 100 * total.proven / total.cuts, "==", 100)
    report.bar("cuts that ended otherwise than they may", len(total.strays), "==", 0)
    if total.adjourned:
        report.figure("adjourned", dict(total.adjourned))
    report.bar("cuts adjourned and made anew", total.adjourned.total(), "==", 0, wall_clock=True)


if __name__ == "__main__":
    sys.exit(main("power", measure))
