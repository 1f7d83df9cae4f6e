# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: where vectors and real firmware are, and a closing list of what was skipped.

With FLASHJOB_REQUIRE_EMBEDDED=1 a skipped integration test is a failure: no part of the embedded default may be missing.
"""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine must not fail a property: what matters is the answer, not the milliseconds.
settings.register_profile("flashjob", deadline=None)
settings.load_profile("flashjob")


def _directory(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the directory with the public {variable.split('_')[1].lower()}")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"{variable}={value} is not a directory")
    return path


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: fixtures put away what they made."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def vectors_dir() -> Path:
    """The public test vectors; skips where FLASHJOB_VECTORS_DIR is unset."""
    return _directory("FLASHJOB_VECTORS_DIR")


@pytest.fixture(scope="session")
def firmware_dir() -> Path:
    """Real firmware images; skips where FLASHJOB_FIRMWARE_DIR is unset."""
    return _directory("FLASHJOB_FIRMWARE_DIR")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("integration")
        and os.environ.get("FLASHJOB_REQUIRE_EMBEDDED") == "1"
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped, but FLASHJOB_REQUIRE_EMBEDDED=1: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("skipped, and why")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:4}  {reason}")
