# SPDX-License-Identifier: Apache-2.0
"""Every example is valid as the API server and as our models read it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flashjob.api.attestationpolicy import AttestationPolicy
from flashjob.api.crds import structural_schema
from flashjob.api.device import Device
from flashjob.api.flashjob import FlashJob
from flashjob.cluster.structural import completed, problems

ROOT = Path(__file__).parents[3] / "examples"
MODELS: dict[str, type[Any]] = {"FlashJob": FlashJob, "AttestationPolicy": AttestationPolicy, "Device": Device}
FILES = sorted(path for kind in ("flashjobs", "policies", "devices") for path in (ROOT / kind).glob("*.yaml"))


def test_there_are_examples() -> None:
    assert len(FILES) >= 7


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_valid(path: Path) -> None:
    obj = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = MODELS[obj["kind"]]
    schema = structural_schema(model)
    assert list(problems(schema, obj)) == []
    assert completed(schema, obj)["spec"].keys() >= obj["spec"].keys()
    assert model.parse(obj).spec
