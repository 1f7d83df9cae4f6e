# SPDX-License-Identifier: Apache-2.0
"""Whom a job is about.

1. Only Devices in the job's namespace.
2. `selector`: all labels equal, all expressions hold (metav1.LabelSelector). An empty selector selects nothing.
3. `akri`: the device is listed now, by a verified token, under that Configuration.
4. `properties`: an Instance with a verified token of this device has all those properties.
5. No device at all: DeviceNotEnrolled where Instances fit but no Device owns them, else NoDevices.
6. The selection is closed when the job's tasks exist: what is flashed leaves Akri's lists, and must not leave the job.
"""

from collections.abc import Iterable

from flashjob.api.flashjob import Devices, LabelExpression, Selector
from flashjob.wire.reasons import Reason

from .messages import refuse
from .state import Device, Instance, Job, Refusal


def _expression(expression: LabelExpression, device: Device) -> bool:
    value = device.labels.get(expression.key)
    match expression.operator:
        case "In":
            return value is not None and value in expression.values
        case "NotIn":
            return value is None or value not in expression.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None


def _labels_match(selector: Selector, device: Device) -> bool:
    if not selector.match_labels and not selector.match_expressions:
        return False
    return all(device.labels.get(k) == v for k, v in selector.match_labels.items()) and all(
        _expression(e, device) for e in selector.match_expressions
    )


def _instance_fits(devices: Devices, instance: Instance) -> bool:
    if instance.deleting or instance.listing is None:
        return False
    if devices.akri is not None:
        return instance.configuration == devices.akri.configuration
    wanted = devices.properties or {}
    return bool(wanted) and all(instance.properties.get(k) == v for k, v in wanted.items())


def select(job: Job, devices: Iterable[Device], instances: Iterable[Instance]) -> tuple[Device, ...] | Refusal:
    """The selected devices by name (rules 1 to 4), or why there is none (rule 5)."""
    own = [d for d in devices if d.namespace == job.namespace]
    wanted = job.spec.devices
    listed: set[str] = set()
    if wanted.selector is not None:
        chosen = [d for d in own if _labels_match(wanted.selector, d)]
    else:
        listed = {i.listing.device for i in instances if i.listing is not None and _instance_fits(wanted, i)}
        chosen = [d for d in own if d.id in listed]
    if chosen:
        return tuple(sorted(chosen, key=lambda d: d.name))
    if listed:
        return refuse(
            Reason.DEVICE_NOT_ENROLLED,
            f"{len(listed)} Instance(s) fit spec.devices, but no Device in namespace {job.namespace} has such an id",
        )
    return refuse(Reason.NO_DEVICES, f"spec.devices matches none of the {len(own)} Device(s) in {job.namespace}")
