# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinitions, made from the models: structural OpenAPI v3 with defaults, bounds and CEL rules.

`python -m flashjob.api.crds [DIRECTORY]` writes one file per kind (default: crds). A test compares them with the models.

How a pydantic schema becomes a structural one:

1. References are resolved; titles and `additionalProperties: false` go (the API server prunes by itself).
2. "X or null" is X: an absent field is absent, never null.
3. Defaults that say nothing (null, empty text, empty list, empty map) go; a default object becomes {}, because the
   defaults of its fields fill it. `status` has a default where one of its own fields has one.
4. Every integer and number has both bounds; where the model gives none, those of integers that JSON carries exactly.
5. Bytes are base64url text; their limit becomes one of characters.
6. `json_schema_extra` passes through: CEL rules, list types.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from .attestationpolicy import AttestationPolicy
from .device import Device
from .flashjob import FlashJob
from .flashtask import FlashTask
from .meta import GROUP, VERSION, Resource, column

_JSON_INTEGER: Final = 2**53 - 1
_KEPT: Final = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
)
_AGE: Final = column("Age", ".metadata.creationTimestamp", "date")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind and what kubectl shows of it."""

    model: type[Resource]
    plural: str
    short_name: str
    columns: tuple[dict[str, Any], ...]
    selectable: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in FlashJob."""
        return self.model.__name__


KINDS: Final = (
    Kind(
        FlashJob,
        "flashjobs",
        "fj",
        (
            column("Phase", ".status.phase", description="Summary of the rollout."),
            column("Progress", ".status.progress", description="Devices at their end, of all."),
            column("Version", ".status.firmware.version", description="Version of the pinned artifact."),
            column("Reason", '.status.conditions[?(@.type=="Progressing")].reason', description="Why it is so."),
            column("Digest", ".status.firmware.digest", priority=1, description="Digest of the pinned index."),
            _AGE,
        ),
    ),
    Kind(
        FlashTask,
        "flashtasks",
        "ft",
        (
            column("Device", ".spec.device.name", description="Name of the Device."),
            column("Phase", ".status.phase", description="Where the task is, by the operator."),
            column("Stage", ".status.report.stage.name", description="Where a long attempt is, by the gateway."),
            column("Reason", ".status.reason", description="Why it is so."),
            column("Attempt", ".status.attempt", "integer", 1, "The running or last attempt."),
            column("Version", ".spec.target.version", priority=1, description="What the device is to run."),
            column("Message", ".status.message", priority=1, description="Why, for people."),
            _AGE,
        ),
        (".status.phase", ".spec.device.id", ".spec.device.name"),
    ),
    Kind(
        Device,
        "devices",
        "dev",
        (
            column("Root of trust", ".spec.rootOfTrust", description="What the hardware can prove at best."),
            column("Application", ".status.firmware.application", description="As last confirmed."),
            column("Version", ".status.firmware.version", description="As last confirmed."),
            column("Quarantined", ".status.quarantine.reason", description="Why it is withheld, if it is."),
            column("Chip", ".spec.hardware.chip", priority=1, description="As read at enrolment."),
            column("Attested", ".status.attestation.accepted", "boolean", 1, "Whether its last evidence held."),
            column("Id", ".spec.id", priority=1, description="UEID."),
            _AGE,
        ),
        (".spec.id",),
    ),
    Kind(
        AttestationPolicy,
        "attestationpolicies",
        "ap",
        (
            column("Root of trust", ".spec.minRootOfTrust", description="Weakest that counts as success."),
            column("Measured", ".spec.requireMeasured", description="Which images must be measured."),
            _AGE,
        ),
    ),
)


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    schema = structural_schema(kind.model)
    version: dict[str, Any] = {"name": VERSION, "served": True, "storage": True}
    version["schema"] = {"openAPIV3Schema": schema}
    if "status" in schema["properties"]:
        version["subresources"] = {"status": {}}
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    version["additionalPrinterColumns"] = list(kind.columns)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": ["flash"],  # not "flashjob": that is a singular name, and a category would hide it
            },
            "versions": [version],
        },
    }


def crds() -> list[dict[str, Any]]:
    """All of them."""
    return [crd(kind) for kind in KINDS]


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a kind's model; metadata is the API server's own."""
    source = model.model_json_schema(by_alias=True)
    schema = _structural(source, source.get("$defs", {}))
    schema["properties"] |= {
        "apiVersion": {"type": "string", "maxLength": 64, "description": "Version of this kind."},
        "kind": {"type": "string", "maxLength": 64, "description": "This kind."},
        "metadata": {"type": "object"},
    }
    schema["required"] = ["spec"]
    status = schema["properties"].get("status")
    if status is not None:
        status.pop("default", None)
        if any("default" in part for part in status["properties"].values()):
            status["default"] = {}
    return schema


def _structural(source: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    source = _resolved(source, definitions)
    out: dict[str, Any] = {key: source[key] for key in _KEPT if key in source}
    out |= {key: value for key, value in source.items() if key.startswith("x-kubernetes-")}
    if "const" in source:
        out["enum"] = [source["const"]]
    match out.get("type"):
        case "integer" | "number":
            _bound(out, source)
        case "string" if out.get("format") == "binary":
            del out["format"]
            out["pattern"] = "^[A-Za-z0-9_-]*$"
            if "maxLength" in out:
                out["maxLength"] = -(-out["maxLength"] * 4 // 3)
        case "array":
            out["items"] = _structural(source["items"], definitions)
        case "object":
            if "properties" in source:
                out["properties"] = {
                    name: _structural(part, definitions) for name, part in source["properties"].items()
                }
            elif isinstance(source.get("additionalProperties"), dict):
                out["additionalProperties"] = _structural(source["additionalProperties"], definitions)
    default = source.get("default")
    if isinstance(default, dict) and default:
        out["default"] = {}
    elif default not in (None, "", [], {}):
        out["default"] = default
    return out


def _resolved(source: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Without `$ref` and without "or null"; what stands beside them wins."""
    while "$ref" in source or "anyOf" in source:
        beside = {key: value for key, value in source.items() if key not in ("$ref", "anyOf")}
        if "$ref" in source:
            inner = definitions[source["$ref"].removeprefix("#/$defs/")]
        else:
            (inner,) = (part for part in source["anyOf"] if part.get("type") != "null")
        source = {**inner, **beside}
    return source


def _bound(out: dict[str, Any], source: dict[str, Any]) -> None:
    for limit, exclusive, step, default in (
        ("minimum", "exclusiveMinimum", 1, -_JSON_INTEGER),
        ("maximum", "exclusiveMaximum", -1, _JSON_INTEGER),
    ):
        if exclusive in source:
            out[limit] = source[exclusive] + step
        out.setdefault(limit, default)
    if out["type"] == "integer":
        out["format"] = "int64"


def manifests() -> Iterator[tuple[str, str]]:
    """File name and YAML text of every CRD."""
    for kind in KINDS:
        # Through JSON, so that YAML gets no aliases and no Python types.
        content = json.loads(json.dumps(crd(kind)))
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        yield (
            f"{GROUP}_{kind.plural}.yaml",
            f"# SPDX-License-Identifier: Apache-2.0\n# Generated by `python -m flashjob.api.crds`; edit the models.\n{text}",
        )


def write(directory: Path) -> None:
    """Write all manifests."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in manifests():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "crds"))
