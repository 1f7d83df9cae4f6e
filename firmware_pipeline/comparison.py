# SPDX-License-Identifier: Apache-2.0
"""What differs between two artifacts: pure.

An artifact is flattened into facts, path -> value (`esp32c3 app.version` -> `2.1.0`); rows of a list are named by what
identifies them (a partition by its name, an image by role and offset, a measurement by scheme and algorithm). Two
artifacts are equal exactly when their facts are.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from firmware_pipeline.artifact import ChipArtifact
from firmware_pipeline.config import dumps
from firmware_pipeline.signing.release import read_sequence

_ROW_NAMES: Final = {
    "images": lambda row: f"{row['role']}@{row['offset']:#x}",
    "measurements": lambda row: f"{row['scheme']}{row['alg']}",
    "partitions": lambda row: str(row["name"]),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One fact that differs.

    Attributes:
        chip: with the features that its build demands.
        path: of the fact.
        old: None when it was added.
        new: None when it was removed.
    """

    chip: str
    path: str
    old: Any
    new: Any

    @property
    def kind(self) -> Literal["added", "removed", "changed"]:
        if self.old is None:
            return "added"
        return "removed" if self.new is None else "changed"


def compare(old: Sequence[ChipArtifact], new: Sequence[ChipArtifact]) -> list[Change]:
    """Every difference, by chip and path.

    Args:
        old, new: the chips of each artifact.
    """
    before = {(_name(chip), path): value for chip in old for path, value in facts(chip)}
    after = {(_name(chip), path): value for chip in new for path, value in facts(chip)}
    return [
        Change(chip, path, before.get((chip, path)), after.get((chip, path)))
        for chip, path in sorted(before.keys() | after.keys())
        if before.get((chip, path)) != after.get((chip, path))
    ]


def _name(chip: ChipArtifact) -> str:
    return " ".join((chip.target, *chip.config.features))


def facts(chip: ChipArtifact) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that is known about one chip's firmware. Values are texts, numbers and booleans."""
    yield from _flat("", json.loads(dumps(chip.config)))
    if chip.release_statement is not None:
        yield "release.sequence", read_sequence(chip.release_statement, chip.config)


def _flat(path: str, value: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in value:
            yield from _flat(f"{path}.{key}" if path else key, value[key], key)
    elif isinstance(value, list):
        name = _ROW_NAMES.get(field)
        for number, row in enumerate(value):
            yield from _flat(f"{path}[{name(row) if name else number}]", row)
    else:
        yield path, value
