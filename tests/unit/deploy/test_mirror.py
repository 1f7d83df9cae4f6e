# SPDX-License-Identifier: Apache-2.0
"""The mirror's manifest: what it starts exists, what it may do is next to nothing."""

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from firmware_pipeline.cli import app
from firmware_pipeline.serving import DEFAULT_PORT

PATH = Path(__file__).parents[3] / "deploy/mirror/mirror.yaml"


@pytest.fixture
def objects() -> dict[str, Any]:
    return {found["kind"]: found for found in yaml.safe_load_all(PATH.read_text())}


@pytest.fixture
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    return dict(objects["DaemonSet"]["spec"]["template"]["spec"])


def test_the_service_finds_the_mirror_of_the_same_node(objects: dict[str, Any]) -> None:
    service, daemons = objects["Service"]["spec"], objects["DaemonSet"]["spec"]
    labels = daemons["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert daemons["selector"]["matchLabels"].items() <= labels.items()
    assert service["internalTrafficPolicy"] == "Local"
    (port,) = service["ports"]
    (container,) = daemons["template"]["spec"]["containers"]
    assert port["targetPort"] in {each["name"] for each in container["ports"]}
    assert port["port"] == container["ports"][0]["containerPort"] == DEFAULT_PORT
    assert {found["metadata"]["namespace"] for found in objects.values()} == {"flashjob-system"}


def test_it_meets_the_restricted_standard_and_takes_nothing_of_the_node(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
    assert not [each for each in pod["volumes"] if "hostPath" in each]
    assert not [each for each in container["ports"] if "hostPort" in each]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert container["resources"]["limits"]["memory"]


def test_its_command_is_one_that_the_program_knows(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    words = [*container["command"], *container["args"]]
    assert words[0] == "firmware-pipeline"
    context = typer.Context(typer.main.get_command(app).commands["serve"])  # type: ignore[attr-defined]
    parsed = context.command.make_context("serve", words[2:])
    assert parsed.params["origins"] == ["registry.example/porch"]
    assert str(parsed.params["cache"]) in {each["mountPath"] for each in container["volumeMounts"]}
    assert CliRunner().invoke(app, ["serve", "--help"]).exit_code == 0
