# SPDX-License-Identifier: Apache-2.0
"""Reading what other tools wrote: JSON and YAML of foreign schemas, offsets as texts. All trouble is InputMalformed."""

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.inputs.files import read_file

MAX_TEXT_SIZE = 4 * 1024 * 1024


class Foreign(BaseModel):
    """Files of other tools: known keys are strict, others (there are many, and they change) are left alone."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", populate_by_name=True)


M = TypeVar("M", bound=Foreign)


def malformed(path: Path, detail: str) -> PipelineError:
    """The error for a build file that is not what its tool writes."""
    return PipelineError(
        Reason.InputMalformed, f"{path} is not what a build leaves ({detail[:160]}).", "Build the project again."
    )


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        PipelineError: InputMalformed, and what `read_file` raises.
    """
    try:
        value = json.loads(read_file(path, limit=MAX_TEXT_SIZE))
    except (ValueError, RecursionError) as error:
        raise malformed(path, str(error)) from error
    if not isinstance(value, dict):
        raise malformed(path, "not a JSON object")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping.

    Raises:
        PipelineError: InputMalformed, and what `read_file` raises.
    """
    try:
        value = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise malformed(path, " ".join(str(error).split())) from error
    if not isinstance(value, dict):
        raise malformed(path, "not a YAML mapping")
    return value


def read_text(path: Path) -> str:
    """UTF-8 text.

    Raises:
        PipelineError: InputMalformed, and what `read_file` raises.
    """
    try:
        return read_file(path, limit=MAX_TEXT_SIZE).decode()
    except UnicodeDecodeError as error:
        raise malformed(path, "not UTF-8 text") from error


def validate(model: type[M], value: object, path: Path) -> M:
    """The part of a foreign file that we use.

    Raises:
        PipelineError: InputMalformed.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise malformed(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def optional(model: type[M], path: Path) -> M:
    """A JSON file that not every build has: its absence claims nothing."""
    return validate(model, read_json(path) if path.exists() else {}, path)


def flash_offset(text: str, path: Path) -> int:
    """A flash offset in bytes, hexadecimal with 0x or decimal.

    Raises:
        PipelineError: InputMalformed.
    """
    try:
        offset = int(text, 0)
    except ValueError:
        offset = -1
    if not 0 <= offset < 1 << 32:
        raise malformed(path, f"{text[:40]!r} is no flash offset")
    return offset
