# SPDX-License-Identifier: Apache-2.0
"""docs/firmware-pipeline.md is what the program and the library are."""

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

from firmware_pipeline import api
from firmware_pipeline.inspection import (
    ChipReport,
    ImageReport,
    Inspection,
    ReferrerReport,
    ReleaseReport,
    SignatureReport,
)
from firmware_pipeline.plan import MeasurementEntry

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "firmware-pipeline.md"


def test_verbs_options_and_exit_codes_are_those_of_the_program() -> None:
    generator: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "firmware_pipeline_page.py"))
    assert PAGE.read_text() == generator["page"](), "run: .venv/bin/python scripts/firmware_pipeline_page.py"


def test_every_field_of_the_json_is_described() -> None:
    table = PAGE.read_text().partition("## The JSON of inspect")[2].partition("## Library")[0]
    named = set(re.findall(r"[a-zA-Z]+", " ".join(re.findall(r"`([^`]+)`", table))))
    for model in (
        Inspection,
        ChipReport,
        ImageReport,
        ReferrerReport,
        ReleaseReport,
        SignatureReport,
        MeasurementEntry,
    ):
        for name, field in model.model_fields.items():
            assert (field.alias or name) in named, f"{model.__name__}.{field.alias or name}"


def test_every_function_of_the_library_is_named_and_documented() -> None:
    library = PAGE.read_text().partition("## Library")[2].partition("<!--")[0]
    functions = {name: value for name in api.__all__ if inspect.isfunction(value := getattr(api, name))}
    assert {"push", "resolve", "pull", "verify"} <= functions.keys()
    for name, function in functions.items():
        if name != "locate":
            assert f"`{name}" in library, name
        assert function.__doc__, name
        assert "Raises:" in function.__doc__ or name in ("open_store",), name
        assert "return" in inspect.get_annotations(function), name
