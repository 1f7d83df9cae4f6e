# SPDX-License-Identifier: Apache-2.0
"""`make interop`: run every cell with the real tools, write docs/interop.md, and fail if a cell failed."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_pipeline.errors import PipelineError
from flashjob.errors import FlashJobError
from tests.interop import cells, tools
from tests.interop.cells import Check
from tests.interop.tools import Missing, Tool, ToolFailed
from tests.interop.world import World, Wrong, world

PAGE: Final = Path(__file__).parents[2] / "docs" / "interop.md"
PULLS, COPIES, VERIFIES = "pulls one chip of ours", "copies ours, digest kept", "verifies our signature"
READS = "verifies our SBOM and provenance"
PUSHES, SIGNS = "we read what it pushed", "we verify what it signed"
ATTESTS = "our policy takes its SBOM and provenance"
COLUMNS: Final = (PULLS, COPIES, VERIFIES, READS, PUSHES, SIGNS, ATTESTS)
_CRANE = {PULLS: cells.crane_pulls, COPIES: cells.crane_copies, PUSHES: cells.crane_pushes}
_ORAS = {PULLS: cells.oras_pulls, COPIES: cells.oras_copies, PUSHES: cells.oras_pushes}
_SKOPEO = {PULLS: cells.skopeo_pulls, COPIES: cells.skopeo_copies, PUSHES: cells.skopeo_pushes}
CLIENTS: Final[dict[str, Mapping[str, Check]]] = {
    "crane": _CRANE,
    "oras 1.2": _ORAS,
    "oras 1.3": _ORAS,
    "skopeo 1.9": _SKOPEO,
    "skopeo 1.22": _SKOPEO,
    "cosign 2": {
        VERIFIES: cells.cosign_2_verifies,
        READS: cells.cosign_reads_attestations,
        SIGNS: cells.cosign_2_signs,
        ATTESTS: cells.cosign_2_attests,
    },
    "cosign 3": {
        VERIFIES: cells.cosign_3_verifies,
        READS: cells.cosign_reads_attestations,
        SIGNS: cells.cosign_3_signs,
        ATTESTS: cells.cosign_3_attests,
    },
    "cosign 3, old format": {SIGNS: cells.cosign_3_signs_as_2},
}
REGISTRIES: Final = ("distribution 3", "docker-registry 2.8")
SERVES: Final[dict[str, Check]] = {
    "push, verify, pull every chip": cells.we_push_and_pull,
    "cp to a layout, back, and to the other registry": cells.we_copy,
    "a download goes on in its middle": cells.we_pull_a_part,
}
NOT_HERE: Final = {"zot": "the Go module proxy does not give out its modules, and Debian has no package of it"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell said: "yes", or what went wrong."""

    text: str
    failed: bool


def run(check: Check, tool: Tool | Missing, place: World, registry: str) -> Outcome:
    """Run one cell."""
    if isinstance(tool, Missing):
        return Outcome("not run", False)
    if isinstance(place.registries[registry], Missing):
        return Outcome("not run", False)
    try:
        check(place, tool, registry)
    except (ToolFailed, Wrong, PipelineError, FlashJobError, OSError, ValueError, KeyError) as error:
        return Outcome(f"no: {' '.join(str(error).split())[:240]}", True)
    return Outcome("yes", False)


def find(name: str) -> Tool | Missing:
    """The tool of a row."""
    if name == "crane":
        return tools.crane(os.environ)
    if name == "distribution 3":
        return tools.registry_3(os.environ)
    return tools.debian(name.split(",")[0], os.environ)


def main() -> int:
    """Run everything; the exit code says whether every cell that ran is right."""
    clients = {name: find(name) for name in CLIENTS}
    servers = {name: find(name) for name in REGISTRIES}
    client_rows: dict[str, list[str]] = {}
    failed = 0
    with world(servers) as place:
        for name, checks in CLIENTS.items():
            row = []
            for column in COLUMNS:
                if column not in checks:
                    row.append("")
                    continue
                started = time.monotonic()
                outcomes = {registry: run(checks[column], clients[name], place, registry) for registry in REGISTRIES}
                failed += sum(outcome.failed for outcome in outcomes.values())
                texts = {outcome.text for outcome in outcomes.values()}
                text = texts.pop() if len(texts) == 1 else "; ".join(f"{r}: {o.text}" for r, o in outcomes.items())
                row.append(text)
                print(f"{name:22} {column:26} {text} ({time.monotonic() - started:.1f} s)", flush=True)
            client_rows[name] = row
        server_rows = {}
        for name, server in servers.items():
            outcomes = {what: run(check, server, place, name) for what, check in SERVES.items()}
            failed += sum(outcome.failed for outcome in outcomes.values())
            server_rows[name] = [outcome.text for outcome in outcomes.values()]
            print(f"{name:22} {server_rows[name]}", flush=True)
    PAGE.write_text(page(clients | servers, client_rows, server_rows), encoding="utf-8")
    print(f"{failed} cells failed; written: {PAGE.name}")
    return 1 if failed else 0


def page(
    found: Mapping[str, Tool | Missing], clients: Mapping[str, list[str]], servers: Mapping[str, list[str]]
) -> str:
    """The document."""
    absent = {name: tool.why for name, tool in found.items() if isinstance(tool, Missing)} | NOT_HERE
    lines = [
        "# Other tools and our artifacts",
        "",
        "Written by `make interop`, which runs every cell with the real tools and compares bytes and digests. Nothing here is",
        "claimed that did not run. The artifact has two chips, a release statement, and both forms of our signature.",
        "",
        "## Tools",
        "",
        f"Each cell ran on each of these registries: {', '.join(REGISTRIES)}.",
        "",
        *_table(["tool", *COLUMNS], clients),
        "",
        "- *pulls one chip*: chosen by platform (`espidf/riscv32/esp32c3`); every file equals what was pushed.",
        "- *copies*: into another repository; our client then pulls every chip from there. oras takes our signatures along.",
        "- *verifies*: offline, with our public key; the same artifact without signature is refused.",
        "- *SBOM and provenance*: signed statements in the bundle format (`--new-bundle-format` for cosign 2); another key is",
        "  refused, and so is an artifact where one chip's provenance is missing.",
        "- *we read*: out of a layout that the tool wrote, and what it pushed from one; every byte, by digest.",
        "- *we verify*: signed with a key pair that cosign made, then copied with its signature into a layout.",
        "",
        "## Registries",
        "",
        *_table(["registry", *SERVES], servers),
        "",
        "## Versions",
        "",
        *_table(["tool", "version"], {name: [tool.version] for name, tool in found.items() if isinstance(tool, Tool)}),
        "",
        "Debian's packages are unpacked and run from a cache; crane and distribution are compiled from their Go modules.",
        "",
        "## Not run",
        "",
        *(f"- {name}: {why}" for name, why in absent.items()),
        "",
    ]
    return "\n".join(lines)


def _table(header: list[str], rows: Mapping[str, list[str]]) -> list[str]:
    body = [
        f"| {name} | " + " | ".join(text.replace("|", "\\|") or "-" for text in row) + " |"
        for name, row in rows.items()
    ]
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *body]


if __name__ == "__main__":
    sys.exit(main())
