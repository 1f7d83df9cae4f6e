# SPDX-License-Identifier: Apache-2.0
"""How a device is reached now.

1. The kind is what spec.connection has; a job that names another kind is refused: TransportUnsupported.
2. Serial: exactly one port Instance outside deletion, on a node, has all properties of serial.match. None is
   PortNotFound, several are PortAmbiguous. Instances that list devices (they carry a token) are not ports.
3. Network: the configured address, else where the discovery handler last saw the device; neither is DeviceUnreachable.
4. Whoever else claims the port's Instance, or an Instance that lists the device, uses the device: DeviceInUse.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flashjob.wire.pod import TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.serial import SerialSettings

from .messages import refuse
from .state import Device, Instance, Pod, Refusal


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a pod finds the device.

    Args:
        address: host:port; network only.
        instance: the port Instance to claim; serial only.
        node: where that port is.
        serial: how its line is driven; serial only.
    """

    kind: TransportKind
    address: str | None = None
    instance: str | None = None
    node: str | None = None
    serial: SerialSettings | None = None


def kind(wanted: str, device: Device) -> TransportKind | Refusal:
    """Rule 1. `wanted` is the job's spec.transport."""
    has = {TransportKind.SERIAL: device.serial_match is not None, TransportKind.NETWORK: device.network}
    for transport in TransportKind:
        if has[transport] and wanted in ("Auto", transport.value):
            return transport
    return refuse(
        Reason.TRANSPORT_UNSUPPORTED, f"Device {device.name} has no connection of kind {wanted} in spec.connection"
    )


def connect(transport: TransportKind, device: Device, instances: Iterable[Instance]) -> Connection | Refusal:
    """Rules 2 and 3: where the device is now."""
    if transport is TransportKind.NETWORK:
        address = device.address or device.status.endpoint
        if not address:
            return refuse(
                Reason.DEVICE_UNREACHABLE,
                f"Device {device.name} has no spec.connection.network.address and was not discovered yet",
            )
        return Connection(transport, address=address)
    match = device.serial_match or {}
    described = ", ".join(f"{k}={v}" for k, v in sorted(match.items())) or "nothing"
    ports = sorted(
        (
            i
            for i in instances
            if not i.deleting
            and not i.token
            and i.nodes
            and match
            and all(i.properties.get(k) == v for k, v in match.items())
        ),
        key=lambda i: (i.namespace, i.name),
    )
    if not ports:
        return refuse(Reason.PORT_NOT_FOUND, f"no port Instance has {described}, as Device {device.name} demands")
    if len(ports) > 1:
        names = ", ".join(p.name for p in ports[:4])
        return refuse(Reason.PORT_AMBIGUOUS, f"{len(ports)} port Instances have {described}: {names}")
    return Connection(transport, instance=ports[0].name, node=ports[0].nodes[0], serial=device.serial)


def used_by(device: Device, connection: Connection, instances: Iterable[Instance], pods: Iterable[Pod]) -> Pod | None:
    """Rule 4: a live foreign pod that uses the device."""
    names = {i.name for i in instances if i.listing is not None and i.listing.device == device.id}
    if connection.instance is not None:
        names.add(connection.instance)
    foreign = [p for p in pods if not p.assignments and not p.terminal and not names.isdisjoint(p.claims)]
    return min(foreign, key=lambda p: (p.namespace, p.name), default=None)
