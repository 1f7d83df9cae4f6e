# SPDX-License-Identifier: Apache-2.0
"""PURE: a container's environment, from its spec and the objects it refers to.

Rules:
1. Precedence, low to high: device properties, `envFrom` in order, `env` in order.
2. A claimed Instance's properties come twice, as KEY and as KEY_<HASH> (the part of the Instance's name after its last
   hyphen, upper case).
3. `$(NAME)` in an `env` value is replaced by what is defined before it; `$$(NAME)` stays `$(NAME)`; unknown names stay.
4. A missing object or key is `CreateContainerConfigError` unless the reference is optional: then the variable is left out.
5. A value that is a mountPath, or begins with one and a slash, is rewritten to the directory that stands for it here:
   nothing is mounted on this node, and our programs take every path from their environment.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flashjob.errors import FlashJobError

Json = dict[str, Any]
Objects = Mapping[tuple[str, str], Json | None]
"""(kind, name) -> the object, None where it does not exist; kind is `Secret` or `ConfigMap`."""
_REFERENCE: Final = re.compile(r"\$(\$|\(([^()]+)\))")
_SUBSCRIPT: Final = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
_FIELDS: Final = {
    "metadata.name": ("metadata", "name"),
    "metadata.namespace": ("metadata", "namespace"),
    "metadata.uid": ("metadata", "uid"),
    "spec.nodeName": ("spec", "nodeName"),
    "spec.serviceAccountName": ("spec", "serviceAccountName"),
}
LOOPBACK: Final = "127.0.0.1"


def config_error(message: str) -> FlashJobError:
    """Rule 4."""
    return FlashJobError(
        "CreateContainerConfigError", message, "create it, or mark the reference optional; it is tried again"
    )


def references_of(pod: Json, container: Json) -> set[tuple[str, str]]:
    """All Secrets and ConfigMaps that the environment and the volumes refer to."""
    found: set[tuple[str, str]] = set()
    for source in container.get("envFrom") or ():
        for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
            if field in source:
                found.add((kind, source[field]["name"]))
    for variable in container.get("env") or ():
        for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if field in (variable.get("valueFrom") or {}):
                found.add((kind, variable["valueFrom"][field]["name"]))
    for volume in pod["spec"].get("volumes") or ():
        for source in (volume, *(volume.get("projected", {}).get("sources") or ())):
            if "secret" in source:
                found.add(("Secret", source["secret"].get("secretName") or source["secret"]["name"]))
            if "configMap" in source:
                found.add(("ConfigMap", source["configMap"]["name"]))
    return found


def data_of(kind: str, item: Json) -> dict[str, bytes]:
    """All keys of a Secret or ConfigMap, as bytes."""
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    text = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    return text | {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}


def field_of(pod: Json, path: str) -> str:
    """The downward API's value of `path`."""
    if path in _FIELDS:
        section, key = _FIELDS[path]
        return str(pod[section].get(key, ""))
    if path in {"status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs"}:
        return LOOPBACK
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript:
        return str((pod["metadata"].get(subscript[1]) or {}).get(subscript[2], ""))
    raise config_error(f"fieldPath {path!r} is not one this node knows")


def device_environment(instances: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Rule 2: instance name -> brokerProperties, as a claiming container sees them."""
    env: dict[str, str] = {}
    for name, properties in sorted(instances.items()):
        suffix = name.rpartition("-")[2].upper()
        for key, value in properties.items():
            env[key] = value
            env[f"{key}_{suffix}"] = value
    return env


def expand(value: str, defined: Mapping[str, str]) -> str:
    """Rule 3."""

    def replace(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return defined.get(match[2], match[0])

    return _REFERENCE.sub(replace, value)


def rewrite(value: str, paths: Sequence[tuple[str, str]]) -> str:
    """Rule 5: `paths` are (path in the pod, path here), the longest first."""
    for inside, here in paths:
        if value == inside or value.startswith(inside.rstrip("/") + "/"):
            return here + value[len(inside.rstrip("/")) :]
    return value


def _lookup(kind: str, reference: Json, objects: Objects) -> str | None:
    item = objects.get((kind, reference["name"]))
    data = data_of(kind, item) if item is not None else {}
    if reference["key"] in data:
        return data[reference["key"]].decode(errors="replace")
    if reference.get("optional"):
        return None
    if item is None:
        raise config_error(f'{kind.lower()} "{reference["name"]}" not found')
    raise config_error(f"couldn't find key {reference['key']} in {kind} {reference['name']}")


def _value(variable: Json, pod: Json, objects: Objects, defined: Mapping[str, str]) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value", ""), defined)
    for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if field in source:
            return _lookup(kind, source[field], objects)
    if "fieldRef" in source:
        return field_of(pod, source["fieldRef"]["fieldPath"])
    raise config_error(f"variable {variable['name']}: this node does not know {', '.join(sorted(source))}")


def container_environment(
    pod: Json,
    container: Json,
    *,
    objects: Objects,
    devices: Mapping[str, Mapping[str, str]],
    paths: Sequence[tuple[str, str]],
) -> dict[str, str]:
    """The environment that the pod's author asked for, with this node's paths.

    Args:
        pod: the pod.
        container: its container.
        objects: what `references_of` names.
        devices: brokerProperties of every claimed Instance.
        paths: (path in the pod, path here), the longest first.

    Raises:
        FlashJobError: `CreateContainerConfigError` (rule 4).
    """
    env = device_environment(devices)
    for source in container.get("envFrom") or ():
        for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
            if field not in source:
                continue
            item = objects.get((kind, source[field]["name"]))
            if item is None and not source[field].get("optional"):
                raise config_error(f'{kind.lower()} "{source[field]["name"]}" not found')
            for key, data in data_of(kind, item or {}).items():
                env[source.get("prefix", "") + key] = data.decode(errors="replace")
    for variable in container.get("env") or ():
        value = _value(variable, pod, objects, env)
        if value is not None:
            env[variable["name"]] = value
    return {name: rewrite(value, paths) for name, value in env.items()}
