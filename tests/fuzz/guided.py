# SPDX-License-Identifier: Apache-2.0
"""The coverage-guided engine: `python -m tests.fuzz.guided TARGET [libFuzzer options] [CORPUS]`, with atheris installed."""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    """Entry point; libFuzzer ends the process."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["attestation", "firmware_pipeline"]):
        from tests.fuzz.targets import targets
    target = targets()[name]

    def one(data: bytes) -> None:
        target.accepts(data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
