# SPDX-License-Identifier: Apache-2.0
"""`make fuzz` and `python -m tests.fuzz [TARGET...]`: see docs/fuzzing.md.

Exit codes: 0 nothing found; 1 a finding, with its input; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from . import engine
from .target import Target
from .targets import targets

_BATCH = 2_000


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers and the verdict.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all; --list names them")
    parser.add_argument("--list", action="store_true", help="names, and nothing else")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--inputs", type=int, help="so many inputs instead")
    parser.add_argument("--number", type=int, default=1, help="which supply of inputs (default: 1)")
    parser.add_argument("--engine", choices=("atheris", "builtin"), help="default: atheris where it is installed")
    parser.add_argument("--corpus", type=Path, help="directory that atheris keeps interesting inputs in")
    parser.add_argument("--input", type=Path, help="only this input, as a finding left it")
    wanted = parser.parse_args()
    if wanted.list:
        sys.stdout.write("\n".join(sorted(targets())) + "\n")
        return 0
    chosen = wanted.targets or sorted(targets())
    if unknown := sorted(set(chosen) - set(targets())):
        parser.error(f"{unknown[0]!r} is no target: --list names them")
    found = bool(importlib.util.find_spec("atheris"))
    if wanted.engine == "atheris" and not found:
        parser.error("atheris is not installed: pip install --require-hashes -r requirements/fuzz.txt")
    guided = wanted.engine == "atheris" or (wanted.engine is None and found and wanted.inputs is None)
    if wanted.input:
        data = wanted.input.read_bytes()
        for name in chosen:
            taken = targets()[name].accepts(data)
            sys.stdout.write(f"{name}: {'accepted' if taken else 'refused'}\n")
        return 0
    failed = []
    for name in chosen:
        if guided:
            well = _guided(name, wanted.seconds, wanted.number, wanted.corpus)
        else:
            well = _builtin(targets()[name], wanted.seconds, wanted.inputs, wanted.number)
        if not well:
            failed.append(name)
    if failed:
        sys.stdout.write(f"findings in {', '.join(failed)}\n")
    return 1 if failed else 0


def _builtin(target: Target, seconds: int, inputs: int | None, number: int) -> bool:
    """Run the built-in engine for a time or a number of inputs; the thousandth slowest must keep within the CPU bound."""
    total = engine.Tally()
    end = time.monotonic() + seconds
    while total.inputs < inputs if inputs is not None else time.monotonic() < end:
        batch = _BATCH if inputs is None else inputs
        try:
            tally = engine.run(target, batch, number=number)
        except engine.Finding as finding:
            sys.stdout.write(f"FINDING {finding}\n")
            return False
        total.inputs += tally.inputs
        total.accepted += tally.accepted
        total.seconds += tally.seconds
        total.slow += tally.slow
        number += 1
    sys.stdout.write(
        f"{target.name}: {total.inputs} inputs, {total.accepted} accepted, {len(total.slow)} over the CPU bound, "
        f"{total.seconds:.1f} CPU seconds\n"
    )
    if len(total.slow) > total.inputs // 1000:
        took, data = max(total.slow)
        sys.stdout.write(f"FINDING {target.name}: {took * 1000:.1f} ms for {len(data)} bytes: {data[:4096].hex()}\n")
        return False
    return True


def _guided(name: str, seconds: int, number: int, corpus: Path | None) -> bool:
    """Run atheris in a process of its own: it instruments what it imports, and it ends its process."""
    folder = (corpus or Path("build/fuzz")) / name
    folder.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(targets()[name].seeds):
        (folder / f"seed-{place}").write_bytes(seed)
    limit = targets()[name].limit
    command = [
        sys.executable, "-m", "tests.fuzz.guided", name, f"-max_total_time={seconds}", f"-seed={number}",
        f"-max_len={limit}", "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={folder}/", "-print_final_stats=1",
        str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ})
    stats = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line or " cov: " in line]
    sys.stdout.write(f"{name}: {' | '.join(line.strip() for line in stats[-2:]) or 'no statistics'}\n")
    if done.returncode:
        sys.stdout.write(f"FINDING {name}:\n{done.stdout[-2000:]}{done.stderr[-6000:]}\n")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
