# SPDX-License-Identifier: Apache-2.0
"""How a Device says its line is driven reaches the esptool program: Device -> plan -> pod -> environment -> transport."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from esp_pylib.serial_reset import parse_custom_reset_sequence
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flashjob.api.device import SerialConnection
from flashjob.flasher.esptool import Esptool
from flashjob.flasher.main import read_environment
from flashjob.operator import project
from flashjob.operator.apply import pod_object
from flashjob.planning.plan import plan
from flashjob.planning.state import Instance
from flashjob.wire.pod import Assignment
from flashjob.wire.serial import USUAL, SerialSettings
from flashjob.workloads.pod import PodSettings
from tests.unit.planning.model import Model, device, job

MATCH = {"UDEV_DEVPATH": "/virtual/d0"}
PORT = Instance("akri", "ports-a", "ports", MATCH, nodes=("node1",))
STEPS = st.one_of(
    st.sampled_from(["D0", "D1", "R0", "R1", "U0,0", "U0,1", "U1,0", "U1,1"]),
    st.integers(0, 9999).map(lambda ms: f"W{ms / 1000:g}"),
)
SETTINGS = st.builds(
    SerialSettings,
    baud=st.integers(9600, 4_000_000),
    reset=st.sampled_from(["auto", "usb-jtag", "classic", "none"])
    | st.lists(STEPS, min_size=1, max_size=32).map("|".join),
    stub=st.booleans(),
)


def assigned(serial: dict[str, Any]) -> Assignment:
    """What the pod is told of a Device with this spec.connection.serial."""
    known = device("d0")
    spec = {"id": known.id, "policyRef": {"name": "lab"}, "connection": {"serial": {"match": MATCH, **serial}}}
    raw = {
        "apiVersion": "flashjob.dev/v1alpha1",
        "kind": "Device",
        "metadata": {"name": "d0", "namespace": "farm", "labels": dict(known.labels)},
        "spec": {**spec, "rootOfTrust": "SignedBoot"},
    }
    model = Model(job(), {known.id: project.device(raw)}, instances={"ports-a": PORT})
    model.job = replace(model.job, finalizer=True)
    while not (starts := (decisions := plan(model.state(), model.now)).starts):
        for write in model.writes(decisions):
            write()
    (start,) = starts
    container = pod_object(model.job, [start], PodSettings("flasher", "https://gateway"))["spec"]["containers"][0]
    environment = {item["name"]: item["value"] for item in container["env"]}
    (told,) = read_environment({**environment, "UDEV_DEVNODE": "/dev/ttyUSB0"}).assignments.items
    return told


@given(settings=SETTINGS)
def test_what_the_device_says_is_what_the_pod_is_told(settings: SerialSettings) -> None:
    assert assigned(settings.dump()).serial == settings


def test_a_device_that_says_nothing_has_the_usual_line() -> None:
    assert assigned({}).serial == USUAL == SerialSettings(baud=460_800, reset="auto", stub=True)


@given(steps=st.lists(STEPS, min_size=1, max_size=32))
def test_every_sequence_that_is_taken_is_one_that_esptool_reads(steps: list[str]) -> None:
    settings = SerialSettings(reset="|".join(steps))
    assert len(parse_custom_reset_sequence(settings.reset)) == len(steps)


ZOO: dict[str, dict[str, Any]] = {
    "too slow": {"baud": 9599},
    "too fast": {"baud": 4_000_001},
    "a rate in words": {"baud": "115200"},
    "no way": {"reset": ""},
    "an unknown way": {"reset": "warm"},
    "a third level": {"reset": "D2"},
    "two levels": {"reset": "D10"},
    "a half pair": {"reset": "U1"},
    "no time": {"reset": "W"},
    "ten seconds": {"reset": "W10"},
    "a number with two points": {"reset": "W0.1.2"},
    "a step that is none": {"reset": "D0|X1"},
    "an empty step": {"reset": "D0||R1"},
    "a last bar": {"reset": "D0|"},
    "spaces": {"reset": "D0 | R1"},
    "33 steps": {"reset": "|".join(["D0"] * 33)},
    "a second line": {"reset": "D0\n"},
    "a stub in words": {"stub": "no"},
    "another word": {"parity": "odd"},
}


@pytest.mark.parametrize("given_", ZOO.values(), ids=list(ZOO))
def test_what_no_line_can_be_driven_by(given_: dict[str, Any]) -> None:
    for model in (SerialSettings, SerialConnection):
        more = {"match": MATCH} if model is SerialConnection else {}
        with pytest.raises(ValidationError) as wrong:
            model.model_validate_json(json.dumps({**more, **given_}))
        assert wrong.value.errors()[0]["loc"] == (next(iter(given_)),)


ECHO = """#!{python}
import json, sys
for line in sys.stdin:
    open({file!r}, "w").write(line)
    print(json.dumps({{"event": "done", "bytesWritten": 0}}), flush=True)
"""


async def test_the_esptool_program_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, program = tmp_path / "heard", tmp_path / "program"
    program.write_text(ECHO.format(python=sys.executable, file=str(heard)))
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    settings = SerialSettings(baud=115_200, reset="R1|W0.25|R0", stub=False)
    async with Esptool("/dev/port", settings) as tool:
        await tool.reset()
    told = json.loads(heard.read_text())
    assert {name: told[name] for name in ("baud", "reset", "stub")} == settings.dump()


def test_the_message_of_the_schema_shows_what_the_pattern_takes() -> None:
    schema = SerialConnection.model_json_schema()
    (rule,) = schema["x-kubernetes-validations"]
    example = re.search(r"as (\S+)$", rule["message"])
    assert example is not None
    assert SerialSettings(reset=example[1]).reset == example[1]
