# SPDX-License-Identifier: Apache-2.0
"""What the node agent admits, and the environment it gives: the rules of node/spec.py and node/environment.py."""

from __future__ import annotations

import base64
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashjob.errors import FlashJobError
from flashjob.sandbox.node import environment, spec

Json = dict[str, Any]
ALLOWED = ["flashjob.flasher", "other.program"]


def pod(container: Json | None = None, **fields: Any) -> Json:
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u-1", "labels": {"app": "x"}, "annotations": {"a/b": "y"}},
        "spec": {
            "restartPolicy": "Never",
            "nodeName": "node-a",
            "containers": [{"name": "c", "command": ["python", "-m", "flashjob.flasher"], **(container or {})}],
            **fields,
        },
    }


def reason_of(action: Any) -> str:
    with pytest.raises(FlashJobError) as caught:
        action()
    assert caught.value.next_step
    return caught.value.reason


@pytest.mark.parametrize(
    "bad",
    [
        pod(containers=[{"name": "a"}, {"name": "b"}]),
        pod(initContainers=[{"name": "i"}]),
        pod(restartPolicy="OnFailure"),
        pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}]),
        pod(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]),
    ],
)
def test_rules_1_and_2_unsupported_pods(bad: Json) -> None:
    assert reason_of(lambda: spec.container_of(bad)) == "UnsupportedPod"


@pytest.mark.parametrize(
    "command",
    [
        ["/bin/sh", "-c", "true"],
        ["python", "-c", "print()"],
        ["python", "-m", "http.server"],
        ["python", "-m"],
        ["python", "script.py", "-m", "flashjob.flasher"],
        ["python", "-I", "-m", "flashjob.flasher"],
    ],
)
def test_rule_3_foreign_programs_are_refused(command: list[str]) -> None:
    assert reason_of(lambda: spec.command_of({"name": "c", "command": command}, ALLOWED)) == "EntryPointNotAllowed"


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({"command": ["python3", "-m", "other.program"], "args": ["-v"]}, ["-m", "other.program", "-v"]),
        ({"command": ["/usr/bin/python", "-m"], "args": ["flashjob.flasher"]}, ["-m", "flashjob.flasher"]),
        ({"args": ["--x"]}, ["-m", "flashjob.flasher", "--x"]),
        ({}, ["-m", "flashjob.flasher"]),
    ],
)
def test_rule_3_our_programs_run_under_this_interpreter(container: Json, expected: list[str]) -> None:
    assert spec.command_of({"name": "c", **container}, ALLOWED) == [sys.executable, *expected]


def test_rule_4_claims() -> None:
    claiming = pod({"resources": {"limits": {"akri.sh/ports-aaaaaa": "1", "memory": "1Gi"}}})
    assert spec.claims_of(claiming) == {"ports-aaaaaa": 1}
    spec.check_claims({"ports-aaaaaa": 1}, {"ports-aaaaaa": 1}, {})
    for capacity, used in (({}, {}), ({"ports-aaaaaa": 1}, {"ports-aaaaaa": 1}), ({"ports-aaaaaa": 0}, {})):
        reason = reason_of(lambda c=capacity, u=used: spec.check_claims({"ports-aaaaaa": 1}, c, u))
        assert reason == "UnexpectedAdmissionError"


def env_of(container: Json, **arguments: Any) -> dict[str, str]:
    whole = pod(container)
    defaults: Json = {"objects": {}, "devices": {}, "paths": []}
    return environment.container_environment(whole, whole["spec"]["containers"][0], **(defaults | arguments))


SECRET = {"data": {"user": base64.b64encode(b"me").decode(), "FROM": base64.b64encode(b"secret").decode()}}
OBJECTS: environment.Objects = {
    ("Secret", "login"): SECRET,
    ("ConfigMap", "settings"): {"data": {"FROM": "map", "url": "http://x"}},
    ("Secret", "gone"): None,
}


def test_rule_1_precedence() -> None:
    container = {
        "envFrom": [{"secretRef": {"name": "login"}}, {"configMapRef": {"name": "settings"}, "prefix": "S_"}],
        "env": [{"name": "S_url", "value": "own"}],
    }
    env = env_of(container, objects=OBJECTS, devices={"ports-a1b2c3": {"FROM": "device", "UDEV_DEVNODE": "/dev/x"}})
    assert env["FROM"] == "secret"
    assert env["S_FROM"] == "map"
    assert env["S_url"] == "own"
    assert env["UDEV_DEVNODE"] == "/dev/x"


def test_rule_2_device_properties_in_both_forms() -> None:
    env = environment.device_environment({"my-ports-a1b2c3": {"UDEV_DEVNODE": "/dev/x"}})
    assert env == {"UDEV_DEVNODE": "/dev/x", "UDEV_DEVNODE_A1B2C3": "/dev/x"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("$(A)-$(B)", "1-$(B)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $( $()", "$A ${A} $( $()"),
        ("", ""),
    ],
)
def test_rule_3_expansion(value: str, expected: str) -> None:
    assert environment.expand(value, {"A": "1"}) == expected


def test_rule_3_only_what_is_defined_before() -> None:
    env = env_of({"env": [{"name": "X", "value": "$(Y)"}, {"name": "Y", "value": "1"}, {"name": "Z", "value": "$(Y)"}]})
    assert env == {"X": "$(Y)", "Y": "1", "Z": "1"}


@pytest.mark.parametrize(
    "variable",
    [
        {"secretKeyRef": {"name": "gone", "key": "k"}},
        {"secretKeyRef": {"name": "login", "key": "other"}},
        {"configMapKeyRef": {"name": "settings", "key": "other"}},
        {"fieldRef": {"fieldPath": "spec.priority"}},
        {"resourceFieldRef": {"resource": "limits.cpu"}},
    ],
)
def test_rule_4_missing(variable: Json) -> None:
    container = {"env": [{"name": "V", "valueFrom": variable}]}
    assert reason_of(lambda: env_of(container, objects=OBJECTS)) == "CreateContainerConfigError"


def test_rule_4_optional_is_left_out() -> None:
    source = {"secretKeyRef": {"name": "gone", "key": "k", "optional": True}}
    assert env_of({"env": [{"name": "V", "valueFrom": source}]}, objects=OBJECTS) == {}
    assert env_of({"envFrom": [{"secretRef": {"name": "gone", "optional": True}}]}, objects=OBJECTS) == {}
    assert reason_of(lambda: env_of({"envFrom": [{"secretRef": {"name": "gone"}}]}, objects=OBJECTS))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "n"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "x"),
        ("metadata.annotations['a/b']", "y"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "node-a"),
        ("status.podIP", "127.0.0.1"),
    ],
)
def test_downward_api(path: str, expected: str) -> None:
    assert environment.field_of(pod(), path) == expected


def test_rule_5_paths_are_rewritten() -> None:
    container = {
        "volumeMounts": [
            {"name": "outer", "mountPath": "/var/run/flashjob/"},
            {"name": "token", "mountPath": "/var/run/flashjob/token", "subPath": "s"},
        ]
    }
    mounts = spec.mounts_of(container)
    assert [name for _path, name, _sub in mounts] == ["token", "outer"]
    paths = [(path, f"/here/{name}" + (f"/{sub}" if sub else "")) for path, name, sub in mounts]
    for value, expected in (
        ("/var/run/flashjob/token/token", "/here/token/s/token"),
        ("/var/run/flashjob/token", "/here/token/s"),
        ("/var/run/flashjob/tokens", "/here/outer/tokens"),
        ("/var/run/flashjobs", "/var/run/flashjobs"),
        ("x/var/run/flashjob", "x/var/run/flashjob"),
    ):
        assert environment.rewrite(value, paths) == expected


@given(value=st.text(alphabet="$()AB /x"), defined=st.dictionaries(st.sampled_from("AB"), st.text(alphabet="xy")))
def test_rule_3_never_fails_and_leaves_text_alone(value: str, defined: dict[str, str]) -> None:
    expanded = environment.expand(value, defined)
    if "$" not in value:
        assert expanded == value


def test_references() -> None:
    whole = pod(
        {
            "env": [{"name": "V", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}}],
            "envFrom": [{"configMapRef": {"name": "m1"}}],
        },
        volumes=[
            {"name": "a", "secret": {"secretName": "s2"}},
            {"name": "b", "projected": {"sources": [{"configMap": {"name": "m2"}}, {"secret": {"name": "s3"}}]}},
            {"name": "c", "emptyDir": {}},
        ],
    )
    assert environment.references_of(whole, whole["spec"]["containers"][0]) == {
        ("Secret", "s1"),
        ("Secret", "s2"),
        ("Secret", "s3"),
        ("ConfigMap", "m1"),
        ("ConfigMap", "m2"),
    }
