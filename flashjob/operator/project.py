# SPDX-License-Identifier: Apache-2.0
"""From raw objects to what planning sees. Pure; ValueError for what cannot be read, so that caches leave it out by name."""

import json
from typing import Any, Final

from pydantic import ValidationError

from attestation.discovery.listing import FLASHJOB_LISTING
from attestation.policy import AttestationPolicySpec
from flashjob.api.device import Device as DeviceModel
from flashjob.api.flashjob import FlashJob
from flashjob.api.flashtask import FlashTask
from flashjob.api.meta import FINALIZER, ObjectMeta
from flashjob.cluster.lease import DeviceLease
from flashjob.cluster.resources import Obj
from flashjob.planning.state import Device, Instance, Job, Lease, Pod, Refusal, Task
from flashjob.wire.clock import seconds
from flashjob.wire.gateway import DeviceResult, PodResult
from flashjob.wire.pod import ANNOTATION_ASSIGNMENTS, AssignmentRef

ANNOTATION_REFUSAL: Final = "flashjob.dev/refusal"
"""On a FlashTask that was made only to be refused: JSON {reason, message}."""
_AKRI: Final = "akri.sh/"


def _meta(obj: Obj) -> ObjectMeta:
    return ObjectMeta.model_validate(obj["metadata"])


def _created(meta: ObjectMeta) -> float:
    return seconds(meta.creation_timestamp) if meta.creation_timestamp else 0.0


def job(obj: Obj) -> Job:
    """A FlashJob."""
    model = FlashJob.parse(obj)
    meta = model.metadata
    return Job(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        generation=meta.generation,
        created_at=_created(meta),
        spec=model.spec,
        status=model.status,
        deleting=meta.deletion_timestamp is not None,
        finalizer=FINALIZER in meta.finalizers,
        resource_version=meta.resource_version,
    )


def task(obj: Obj) -> Task:
    """A FlashTask."""
    model = FlashTask.parse(obj)
    meta, spec = model.metadata, model.spec
    return Task(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        job=spec.job.name,
        job_uid=spec.job.uid,
        device=spec.device.id,
        device_name=spec.device.name,
        transport=spec.transport,
        target=spec.target,
        before=spec.before,
        timeouts=spec.timeouts,
        safety=spec.safety,
        rediscovery_required=spec.rediscovery == "Required",
        status=model.status,
        created_at=_created(meta),
        refusal=_refusal(meta.annotations.get(ANNOTATION_REFUSAL)),
        resource_version=meta.resource_version,
    )


def _refusal(text: str | None) -> Refusal | None:
    if text is None:
        return None
    found = json.loads(text)
    return Refusal(str(found["reason"]), str(found["message"]))


def device(obj: Obj) -> Device:
    """A Device."""
    model = DeviceModel.parse(obj)
    meta, spec = model.metadata, model.spec
    network, serial = spec.connection.network, spec.connection.serial
    return Device(
        namespace=meta.namespace,
        name=meta.name,
        id=spec.id,
        policy=spec.policy_ref.name,
        root_of_trust=spec.root_of_trust,
        labels=dict(meta.labels),
        network=network is not None,
        address=(network.address or "") if network else "",
        serial_match=dict(serial.match) if serial else None,
        serial=serial.settings if serial else None,
        hardware=spec.hardware,
        suspended=spec.suspended,
        released_at=seconds(spec.release_from_quarantine.at) if spec.release_from_quarantine else None,
        status=model.status,
        resource_version=meta.resource_version,
    )


def policy(obj: Obj) -> AttestationPolicySpec:
    """The spec of an AttestationPolicy."""
    return AttestationPolicySpec.model_validate_json(json.dumps(obj.get("spec") or {}))


def instance(obj: Obj) -> Instance:
    """An Akri Instance. Its token is not verified here."""
    meta, spec = _meta(obj), obj.get("spec") or {}
    properties = {str(k): str(v) for k, v in (spec.get("brokerProperties") or {}).items()}
    return Instance(
        namespace=meta.namespace,
        name=meta.name,
        configuration=str(spec.get("configurationName", "")),
        properties=properties,
        nodes=tuple(str(n) for n in spec.get("nodes") or ()),
        deleting=meta.deletion_timestamp is not None,
        token=properties.get(FLASHJOB_LISTING, ""),
    )


def lease(obj: Obj) -> Lease:
    """The Lease of a device."""
    found = DeviceLease.read(obj)
    namespace, _, name = found.device.partition("/")
    return Lease(
        name=found.name,
        owner=(namespace, name),
        holder=str(found.holder or ""),
        acquired_at=seconds(found.acquire_time) if found.acquire_time else 0.0,
        transitions=found.transitions,
        resource_version=found.resource_version,
    )


def pod(obj: Obj) -> Pod | None:
    """A flashing pod of ours, or a foreign one that claims an Akri Instance; None for all others."""
    meta = _meta(obj)
    claims = _claims(obj.get("spec") or {})
    note = meta.annotations.get(ANNOTATION_ASSIGNMENTS)
    if note is None and not claims:
        return None
    status = obj.get("status") or {}
    states = [(c.get("state") or {}) for c in status.get("containerStatuses") or ()]
    ended: dict[str, Any] = next((s["terminated"] for s in states if s.get("terminated")), {})
    finished = ended.get("finishedAt")
    owner = next((o for o in meta.owner_references if o.kind == "FlashJob"), None)
    phase = str(status.get("phase") or "Pending")
    return Pod(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        phase=phase,
        created_at=_created(meta),
        finished_at=seconds(finished) if finished else None,
        deleting=meta.deletion_timestamp is not None,
        job_uid=owner.uid if owner else "",
        assignments=_assignments(note),
        claims=claims,
        results=_results(ended.get("message") or ""),
        trouble=_trouble(status, states, ended),
        resource_version=meta.resource_version,
    )


def _claims(spec: Obj) -> tuple[str, ...]:
    found = {
        key.removeprefix(_AKRI)
        for container in spec.get("containers") or ()
        for kind in ("limits", "requests")
        for key in ((container.get("resources") or {}).get(kind) or {})
        if key.startswith(_AKRI)
    }
    return tuple(sorted(found))


def assigned(obj: Obj) -> tuple[tuple[str, int], ...]:
    """(task, attempt) of each assignment of a pod."""
    return _assignments((obj["metadata"].get("annotations") or {}).get(ANNOTATION_ASSIGNMENTS))


def _assignments(note: str | None) -> tuple[tuple[str, int], ...]:
    if note is None:
        return ()
    refs = [AssignmentRef.parse(item) for item in json.loads(note)]
    return tuple((ref.task, ref.attempt) for ref in refs)


def _results(message: str) -> tuple[DeviceResult, ...]:
    """The termination message, or nothing: whoever cannot write one has said nothing, and that is a finding of its own."""
    try:
        return PodResult.model_validate_json(message).items if message else ()
    except ValidationError:
        return ()


def _trouble(status: Obj, states: list[Obj], ended: Obj) -> str:
    """Why a pod does not run, or did not end well, in one line."""
    waiting: Obj = next((s["waiting"] for s in states if s.get("waiting")), {})
    unscheduled: Obj = next(
        (c for c in status.get("conditions") or () if c.get("type") == "PodScheduled" and c.get("status") == "False"),
        {},
    )
    for source in (status, waiting, unscheduled):
        parts = [str(source[key]) for key in ("reason", "message") if source.get(key)]
        if parts:
            return ": ".join(parts)[:300]
    if ended and ended.get("exitCode"):
        return f"exit code {ended['exitCode']} ({ended.get('reason', 'Error')})"
    return ""
