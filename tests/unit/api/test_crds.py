# SPDX-License-Identifier: Apache-2.0
"""The committed CRDs are what the models say, and each is complete: described, bounded, with defaults that fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashjob.api.attestationpolicy import AttestationPolicy
from flashjob.api.crds import KINDS, Kind, manifests, structural_schema
from flashjob.api.device import Device
from flashjob.api.flashjob import FlashJob
from flashjob.api.flashtask import FlashTask
from flashjob.cluster.structural import completed, problems
from tests.objects import device, flashjob, flashtask, policy

ROOT = Path(__file__).parents[3]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from walk(part, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def test_committed_files_are_the_generated_ones() -> None:
    generated = dict(manifests())
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "crds").glob("*.yaml")}
    assert committed == generated, "run: python -m flashjob.api.crds"


@by_kind
def test_every_field_is_described(kind: Kind) -> None:
    bare = [
        path
        for path, part in walk(structural_schema(kind.model), "")
        if not part.get("description") and not path.endswith(("[]", "{}")) and path != ".metadata"
    ]
    assert bare == []


@by_kind
def test_every_field_is_bounded(kind: Kind) -> None:
    limits = {"string": {"maxLength", "enum"}, "array": {"maxItems"}}
    unbounded = []
    for path, part in walk(structural_schema(kind.model), ""):
        wanted = limits.get(part["type"], set())
        if part["type"] in ("integer", "number") and not {"minimum", "maximum"} <= part.keys():
            unbounded.append(path)
        if wanted and not wanted & part.keys():
            unbounded.append(path)
        if "additionalProperties" in part and "maxProperties" not in part:
            unbounded.append(path)
    assert unbounded == []


@by_kind
def test_every_default_is_valid(kind: Kind) -> None:
    wrong = [
        f"{path}: {problem}"
        for path, part in walk(structural_schema(kind.model), "")
        if "default" in part
        for problem in problems(part, completed(part, part["default"]))
    ]
    assert wrong == []


@by_kind
def test_every_rule_names_a_field(kind: Kind) -> None:
    for _, part in walk(structural_schema(kind.model), ""):
        for rule in part.get("x-kubernetes-validations", ()):
            assert rule["message"].startswith(("spec", "status", "metadata"))


@pytest.mark.parametrize(
    ("model", "obj"),
    [
        (FlashJob, flashjob("j", "n")),
        (FlashTask, flashtask("t", "n")),
        (Device, device("d", "n")),
        (AttestationPolicy, policy("p", "n")),
    ],
)
def test_server_and_model_have_the_same_defaults(model: type[Any], obj: dict[str, Any]) -> None:
    """What the API server makes of an object, the model reads as it reads the object itself."""
    schema = structural_schema(model)
    served = {**completed(schema, obj), "metadata": obj["metadata"]}
    assert list(problems(schema, served)) == []
    assert model.parse(served) == model.parse(obj)


def test_short_names_and_groups_are_different() -> None:
    assert len({kind.short_name for kind in KINDS}) == len({kind.plural for kind in KINDS}) == 4
