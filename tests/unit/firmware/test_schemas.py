# SPDX-License-Identifier: Apache-2.0
"""The published JSON Schemas: as generated, true of what we pack, and closed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from firmware_pipeline import artifact, config
from firmware_pipeline.artifact import TITLE
from firmware_pipeline.inputs.detect import load_build
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.schemas import schemas, write
from tests.unit.firmware import build_systems, builds

DOCS = Path(__file__).parents[3] / "docs" / "schemas"
Documents = dict[str, Any]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[BuildPlan]:
    folder = tmp_path_factory.mktemp("builds")
    zephyr = load_build(build_systems.write_zephyr_sysbuild(folder / "zephyr"))
    plain = builds.plan(folder, "esp32s3")
    return [plain, plain.model_copy(update={"features": ("flash>=8M", "psram-octal")}), zephyr]


def documents(plan: BuildPlan) -> Documents:
    packed = artifact.pack_chip(plan, release_statement=b"statement")
    return {
        "config.v1.json": json.loads(config.dumps(packed.config)),
        "manifest.v1.json": json.loads(packed.manifest),
        "index.v1.json": json.loads(artifact.pack_index([plan], [packed])),
    }


def check(name: str, document: Any) -> None:
    jsonschema.Draft202012Validator(schemas()[name]).validate(document)


def test_docs_hold_what_the_models_say(tmp_path: Path) -> None:
    assert {path.name: path.read_text() for path in write(tmp_path)} == {
        path.name: path.read_text() for path in DOCS.iterdir()
    }, "python -m firmware_pipeline.schemas docs/schemas"


@pytest.mark.parametrize("name", schemas())
def test_they_are_schemas_of_the_dialect_and_closed(name: str) -> None:
    schema = schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    objects = [schema, *schema["$defs"].values()]
    assert all(each["additionalProperties"] is False for each in objects if each["type"] == "object")


@pytest.mark.parametrize("number", range(3))
def test_what_we_pack_follows_them(plans: list[BuildPlan], number: int) -> None:
    for name, document in documents(plans[number]).items():
        check(name, document)


Edit = Callable[[Any], object]
BAD: list[tuple[str, str, Edit]] = [
    ("unknown key", "config.v1.json", lambda d: d.update(extra=1)),
    ("unknown key in an image", "config.v1.json", lambda d: d["images"][0].update(extra=1)),
    ("unknown feature", "config.v1.json", lambda d: d.update(features=["gpu"])),
    ("unknown role", "config.v1.json", lambda d: d["images"][0].update(role="efuse")),
    ("measurement of no scheme", "config.v1.json", lambda d: d["measurements"][0].update(scheme="elf")),
    ("no measurement", "config.v1.json", lambda d: d.update(measurements=[])),
    ("another version", "config.v1.json", lambda d: d.update(schemaVersion=2)),
    ("layer of another type", "manifest.v1.json", lambda d: d["layers"][0].update(mediaType="text/plain")),
    ("annotation of nobody", "manifest.v1.json", lambda d: d["layers"][0]["annotations"].update({"dev.flashjob.x": "1"})),
    ("title that leads out", "manifest.v1.json", lambda d: d["layers"][0]["annotations"].update({TITLE: "../x"})),
    ("no artifact type", "manifest.v1.json", lambda d: d.pop("artifactType")),
    ("chip of nobody", "index.v1.json", lambda d: d["manifests"][0]["platform"].update(variant="avr")),
    ("no platform", "index.v1.json", lambda d: d["manifests"][0].pop("platform")),
    ("artifact type in an entry", "index.v1.json", lambda d: d["manifests"][0].update(artifactType="x")),
    ("no entry", "index.v1.json", lambda d: d.update(manifests=[])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_anything_else_is_refused(plans: list[BuildPlan], name: str, edit: Edit) -> None:
    document = documents(plans[0])[name]
    check(name, document)
    edit(document)
    with pytest.raises(jsonschema.ValidationError):
        check(name, document)
