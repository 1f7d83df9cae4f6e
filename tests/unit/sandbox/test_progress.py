# SPDX-License-Identifier: Apache-2.0
"""A build is visible: on a terminal and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from flashjob.sandbox.progress import build_progress
from flashjob.sandbox.toolchain import BuildProgress

STEPS = [
    BuildProgress("controlplane", "fetching its sources", 0, 0, 0.1),
    BuildProgress("controlplane", "compiling everything", 0, 200, 9.0),
    *(BuildProgress("controlplane", "compiling everything", done, 200, 9.0 + done) for done in range(1, 201)),
    BuildProgress("controlplane", "built, cached for next time", 1, 1, 300.0),
]


def test_a_log_gets_a_line_per_step_not_per_package() -> None:
    output = io.StringIO()
    with build_progress(Console(file=output, width=200)) as show:
        for step in STEPS:
            show(step)
    lines = output.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1] == "controlplane: compiling everything 0/200, 9 s (once; cached for next time)"


def test_a_terminal_gets_a_bar_with_time() -> None:
    output = io.StringIO()
    with build_progress(Console(file=output, width=200, force_terminal=True)) as show:
        for step in STEPS[:-1]:
            show(step)
    assert "200/200" in output.getvalue()
    assert "compiling everything" in output.getvalue()
    assert "0:00:0" in output.getvalue()
