# SPDX-License-Identifier: Apache-2.0
"""The coverage-guided engine: `python -m tests.fuzz.guided TARGET [libFuzzer options] [CORPUS]`, with atheris installed.

Half of the changes are libFuzzer's, half are the built-in engine's, which knows CBOR and JSON.
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    """Entry point; libFuzzer ends the process."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["attestation", "firmware_pipeline"]):
        from tests.fuzz.mutation import Mutator
        from tests.fuzz.targets import targets
    target = targets()[name]

    structured = Mutator(target.seeds, 0, target.limit)

    def one(data: bytes) -> None:
        target.accepts(data)

    def change(data: bytes, most: int, number: int) -> bytes:
        return structured.vary(data, number)[:most] if number % 2 else bytes(atheris.Mutate(data, most))

    atheris.Setup(sys.argv, one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
