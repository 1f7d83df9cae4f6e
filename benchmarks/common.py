# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: figures, bars, and the one JSON line at the end.

    python benchmarks/NAME.py [--smoke]

A benchmark prints what it does, then as its last line ``{"bench", "load", "figures", "bars"}``. Rules:

1. `load` is the one-minute load average before the run.
2. A bar is a ratio against an anchor of the same run, CPU seconds, bytes or a count: judged wherever it runs.
3. A bar in wall-clock seconds is judged only if `load` is below 0.5; else it is reported with ``"ok": null`` and a
   note that says so.
4. Figures without a bar are facts for people; nothing fails because of them.
5. Exit code: 0 if no bar is broken, 1 if one is, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from flashjob.cli.interruption import Termination

Op = Literal["<=", ">=", "=="]

IDLE_LOAD: Final = 0.5
"""Below this load average absolute times are judged (rule 3)."""

_OPS: Final[dict[Op, Callable[[float, float], bool]]] = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that must hold, and whether it did; `ok` None: not judged, `note` says why."""

    name: str
    value: float
    op: Op
    limit: float
    ok: bool | None
    note: str = ""

    def dump(self) -> dict[str, Any]:
        """As in the JSON line; `note` only where there is one."""
        body = {"name": self.name, "value": self.value, "op": self.op, "limit": self.limit, "ok": self.ok}
        return body | ({"note": self.note} if self.note else {})


@dataclass
class Report:
    """What one benchmark found.

    Args:
        bench: its name.
        load: one-minute load average before the run.
        smoke: whether a minute's worth is wanted.
    """

    bench: str
    load: float
    smoke: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line for people."""
        print(text, flush=True)

    def figure(self, name: str, value: object) -> None:
        """A fact (rule 4); numbers are rounded to three decimals."""
        self.figures[name] = rounded(value)
        self.say(f"  {name}: {json.dumps(self.figures[name])}")

    def bar(self, name: str, value: float, op: Op, limit: float, *, wall_clock: bool = False) -> None:
        """A bar (rules 2 and 3)."""
        value = rounded(value)
        ok: bool | None = _OPS[op](value, limit)
        note = ""
        if wall_clock and self.load >= IDLE_LOAD:
            ok, note = (
                None,
                f"not judged: load {self.load:.2f} before the run, absolute times need less than {IDLE_LOAD}",
            )
        self.bars.append(Bar(name, value, op, limit, ok, note))
        said = {True: "holds", False: "BROKEN", None: note}[ok]
        self.say(f"  bar {name}: {value} {op} {limit}: {said}")

    @property
    def exit_code(self) -> int:
        """Rule 5."""
        return 1 if any(bar.ok is False for bar in self.bars) else 0

    def line(self) -> str:
        """The last line."""
        body = {"bench": self.bench, "load": self.load, "figures": self.figures}
        return json.dumps({**body, "bars": [bar.dump() for bar in self.bars]})


def rounded(value: Any) -> Any:
    """The value with every float in it rounded to three decimals."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value


def median_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """Median of first/second over pairs that ran side by side: what slows both of a pair does not show."""
    return statistics.median(ours / anchor for ours, anchor in pairs)


def main(bench: str, measure: Callable[[Report], None], arguments: Sequence[str] | None = None) -> int:
    """Entry point of a benchmark: measure, print the last line, return the exit code (rule 5)."""
    parser = argparse.ArgumentParser(prog=f"bench-{bench}")
    parser.add_argument("--smoke", action="store_true", help="a minute's worth")
    options = parser.parse_args(arguments)
    report = Report(bench, round(os.getloadavg()[0], 2), options.smoke)
    report.say(f"{bench}: load {report.load} before the run{', smoke' if report.smoke else ''}")
    with Termination():  # SIGTERM, too, leaves no directory behind
        measure(report)
    sys.stdout.write(report.line() + "\n")
    return report.exit_code
