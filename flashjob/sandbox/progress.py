# SPDX-License-Identifier: Apache-2.0
"""Show a build to a person: a bar with elapsed time on a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from .toolchain import BuildProgress, Progress

_LINE_EVERY_SECONDS: Final = 20.0


@contextmanager
def build_progress(console: Console) -> Iterator[Progress]:
    """A receiver of build steps that shows them on `console` until the block ends."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=False) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: BuildProgress) -> None:
            if step.program not in tasks:
                tasks[step.program] = bars.add_task(step.program, total=None)
            description = f"{step.program}: {step.what} (once; cached for next time)"
            bars.update(tasks[step.program], description=description, completed=step.done, total=step.total or None)

        yield show


def _lines(console: Console) -> Progress:
    last: dict[str, tuple[str, float]] = {}

    def show(step: BuildProgress) -> None:
        what, when = last.get(step.program, ("", 0.0))
        new = step.what.partition(" ")[0] != what.partition(" ")[0]
        if new or time.monotonic() - when >= _LINE_EVERY_SECONDS:
            last[step.program] = (step.what, time.monotonic())
            count = f" {step.done}/{step.total}" if step.total else ""
            line = f"{step.program}: {step.what}{count}, {step.elapsed_seconds:.0f} s (once; cached for next time)"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    return show
