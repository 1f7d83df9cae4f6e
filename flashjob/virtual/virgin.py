# SPDX-License-Identifier: Apache-2.0
"""A virtual device as it leaves the chip maker: with a secret of its own in its eFuses, and nobody's keys.

A provisioning station gives it the owner's keys, once, and takes its public key with the proof that it holds the private
one. Who comes later finds it provisioned: keys change by succession only.
"""

from __future__ import annotations

from attestation.factory_list import Entry
from flashjob.provisioning.secret import born
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.profile import Owner


def provision(device: VirtualDevice, owner: Owner, batch: str) -> Entry:
    """Give a virgin device its owner; it resets, and its line of the factory list is returned.

    Raises:
        ValueError: it has an owner already, or would get no grant key.
    """
    if (device.nvs.owner or device.owner).key_ids:
        raise ValueError(f"{device.name} has an owner already")
    if not owner.grant_keys:
        raise ValueError("a device without a grant key could never be updated")
    device.nvs.owner = owner
    device.reset()
    hardware = device.identity.hardware
    return born(device.identity.uds, batch, alg=hardware.alg, hwmodel=hardware.chip.target).entry
