# SPDX-License-Identifier: Apache-2.0
"""What every kind shares: group, metadata, conditions, and the base of its models."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from flashjob.wire.base import WireModel

GROUP: Final = "flashjob.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
FINALIZER: Final = f"{GROUP}/finalizer"

Timestamp = Annotated[
    str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$", max_length=27, description="RFC 3339 in UTC.")
]
Name = Annotated[str, Field(min_length=1, max_length=253)]
Message = Annotated[str, Field(max_length=1024)]


class OwnerReference(BaseModel):
    """The parts of an owner reference that we read."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
    api_version: Annotated[str, Field(alias="apiVersion")]
    kind: str
    name: str
    uid: str
    controller: bool = False


class ObjectMeta(BaseModel):
    """The parts of an object's metadata that we read; all others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: Annotated[str, Field(alias="resourceVersion")] = ""
    creation_timestamp: Annotated[str, Field(alias="creationTimestamp")] = ""
    deletion_timestamp: Annotated[str | None, Field(alias="deletionTimestamp")] = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: Annotated[tuple[OwnerReference, ...], Field(alias="ownerReferences")] = ()


class Resource(WireModel):
    """A kind of ours as the API server gives it. Subclasses add kind, spec and status."""

    api_version: Literal["flashjob.dev/v1alpha1"] = "flashjob.dev/v1alpha1"
    metadata: ObjectMeta


class Condition(WireModel):
    """metav1.Condition."""

    type: Annotated[str, Field(max_length=64, description="What it is about.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="Whether it holds.")]
    reason: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9]*$", description="Why, in one word.")]
    message: Annotated[Message, Field(description="Why, for people, and what to do next.")] = ""
    last_transition_time: Annotated[Timestamp, Field(description="When status last changed.")]
    observed_generation: Annotated[int, Field(ge=0, description="The spec's generation this was judged on.")] = 0


def rules(*validations: tuple[str, str]) -> dict[str, Any]:
    """CEL rules of a model, for its `json_schema_extra`: (rule, message that names the field)."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in validations]}


def keyed_by(name: str) -> dict[str, Any]:
    """For a list's `json_schema_extra`: its items are told apart by this field, which no two may share."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [name]}


def column(name: str, path: str, kind: str = "string", priority: int = 0, description: str = "") -> dict[str, Any]:
    """A printer column of a CRD."""
    out: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    if priority:
        out["priority"] = priority
    if description:
        out["description"] = description
    return out
