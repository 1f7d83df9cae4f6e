# SPDX-License-Identifier: Apache-2.0
"""PURE: from the devices that handlers list to the Instances that must exist, as the real agent names and fills them.

Rules:
1. Name: `<configuration>-<hash>`, hash = BLAKE2b of 3 bytes over the device id, the node's name appended unless shared.
2. brokerProperties: the device's, overridden by the Configuration's.
3. Devices of all endpoints are joined; one hash appears once.
4. An Instance of this Configuration and node that no list names is deleted when this node is its only one; otherwise this
   node only leaves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """One device in one endpoint's list."""

    id: str
    properties: Mapping[str, str]
    shared: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: bodies to apply, names of Instances to leave (with the body to apply) and to delete."""

    apply: tuple[Json, ...]
    leave: tuple[Json, ...]
    delete: tuple[str, ...]


def device_hash(device_id: str, node: str, *, shared: bool) -> str:
    """Rule 1: six hex digits."""
    return hashlib.blake2b((device_id + ("" if shared else node)).encode(), digest_size=3).hexdigest()


def _body(configuration: Json, name: str, spec: Json) -> Json:
    meta = configuration["metadata"]
    owner = {
        "apiVersion": "akri.sh/v0",
        "kind": "Configuration",
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
    }
    return {
        "apiVersion": "akri.sh/v0",
        "kind": "Instance",
        "metadata": {"name": name, "namespace": meta["namespace"], "ownerReferences": [owner]},
        "spec": spec,
    }


def instance(configuration: Json, device: Found, node: str) -> Json:
    """The Instance of a device (rules 1 and 2)."""
    meta, config = configuration["metadata"], configuration["spec"]
    digest = device_hash(device.id, node, shared=device.shared)
    spec = {
        "configurationName": meta["name"],
        "cdiName": f"akri.sh/{meta['name']}={digest}",
        "capacity": config.get("capacity", 1),
        "brokerProperties": {**device.properties, **(config.get("brokerProperties") or {})},
        "shared": device.shared,
        "nodes": [node],
    }
    return _body(configuration, f"{meta['name']}-{digest}", spec)


def plan(configuration: Json, devices: Iterable[Found], existing: Iterable[Json], node: str) -> Plan:
    """What this node's agent does for one Configuration (rules 3 and 4).

    Args:
        configuration: the Configuration.
        devices: the lists of all its endpoints.
        existing: the Instances in its namespace.
        node: this node.
    """
    wanted = {body["metadata"]["name"]: body for body in (instance(configuration, device, node) for device in devices)}
    leave, delete = [], []
    for item in existing:
        meta, spec = item["metadata"], item["spec"]
        mine = spec["configurationName"] == configuration["metadata"]["name"] and node in (spec.get("nodes") or ())
        if not mine or meta["name"] in wanted:
            continue
        if set(spec["nodes"]) == {node}:
            delete.append(meta["name"])
        else:
            kept = {
                key: spec[key] for key in ("configurationName", "cdiName", "capacity", "brokerProperties", "shared")
            }
            leave.append(_body(configuration, meta["name"], {**kept, "nodes": []}))
    return Plan(tuple(wanted.values()), tuple(leave), tuple(sorted(delete)))
