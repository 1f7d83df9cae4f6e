# SPDX-License-Identifier: Apache-2.0
"""Names and contents of Instances, and what a lost device does: the rules of akri/instances.py."""

from __future__ import annotations

from typing import Any

import pytest

from flashjob.sandbox.akri.instances import Found, device_hash, instance, plan

Json = dict[str, Any]
CONFIGURATION: Json = {
    "metadata": {"name": "ports", "namespace": "n", "uid": "cu"},
    "spec": {"capacity": 2, "brokerProperties": {"A": "configuration"}, "discoveryHandler": {"name": "h"}},
}


def existing(name: str, nodes: list[str], configuration: str = "ports") -> Json:
    spec = {"configurationName": configuration, "cdiName": "c", "capacity": 1, "brokerProperties": {}, "shared": True}
    return {"metadata": {"name": name}, "spec": {**spec, "nodes": nodes}}


@pytest.mark.parametrize(("device_id", "expected"), [("dev_1", "cb2ad7"), ("dev_2", "7bbc11")])
def test_rule_1_known_hashes(device_id: str, expected: str) -> None:
    assert device_hash(device_id, "any", shared=True) == expected


def test_rule_1_a_local_device_has_one_name_per_node() -> None:
    assert device_hash("d", "node-a", shared=False) != device_hash("d", "node-b", shared=False)
    assert device_hash("dev_", "1", shared=False) == device_hash("dev_1", "", shared=True)


def test_rule_2_contents() -> None:
    body = instance(CONFIGURATION, Found("dev_1", {"A": "device", "B": "b"}, shared=True), "node-a")
    assert body["metadata"]["name"] == "ports-cb2ad7"
    assert body["metadata"]["ownerReferences"][0]["uid"] == "cu"
    assert body["metadata"]["ownerReferences"][0]["controller"] is True
    assert body["spec"] == {
        "configurationName": "ports",
        "cdiName": "akri.sh/ports=cb2ad7",
        "capacity": 2,
        "brokerProperties": {"A": "configuration", "B": "b"},
        "shared": True,
        "nodes": ["node-a"],
    }


def test_rule_3_one_device_of_two_endpoints_is_one_instance() -> None:
    devices = [Found("dev_1", {}, shared=True), Found("dev_1", {"X": "later"}, shared=True)]
    todo = plan(CONFIGURATION, devices, [], "node-a")
    assert [body["metadata"]["name"] for body in todo.apply] == ["ports-cb2ad7"]


def test_rule_4_lost_devices() -> None:
    present = [
        existing("ports-cb2ad7", ["node-a"]),
        existing("ports-aaaaaa", ["node-a"]),
        existing("ports-bbbbbb", ["node-a", "node-b"]),
        existing("ports-cccccc", ["node-b"]),
        existing("other-dddddd", ["node-a"], "other"),
    ]
    todo = plan(CONFIGURATION, [Found("dev_1", {}, shared=True)], present, "node-a")
    assert todo.delete == ("ports-aaaaaa",)
    assert [body["metadata"]["name"] for body in todo.leave] == ["ports-bbbbbb"]
    assert todo.leave[0]["spec"]["nodes"] == []
