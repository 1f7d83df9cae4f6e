# SPDX-License-Identifier: Apache-2.0
"""Whether Akri shows the device again, as what it was made into.

1. At least one Instance outside deletion has a verified token that names this device, a measurement of the target, and
   the boot id of the verdict.
2. No Instance of this device, in deletion or not, shows another boot id or another endpoint.
Names, UIDs and times of Instances say nothing: they come and go with every reboot.
"""

from collections.abc import Iterable

from flashjob.wire.target import Target

from .state import Instance


def rediscovered(device: str, target: Target, boot_id: str, instances: Iterable[Instance]) -> bool:
    """Rules 1 and 2.

    Args:
        device: id of the device.
        target: what it was to become.
        boot_id: the boot id that the verdict proved.
        instances: of all Configurations.
    """
    wanted = {(m.alg, m.value) for m in target.measurements}
    mine = [(i, i.listing) for i in instances if i.listing is not None and i.listing.device == device]
    shown = any(
        not i.deleting and listing.boot_id == boot_id and (listing.measurement.alg, listing.measurement.value) in wanted
        for i, listing in mine
    )
    one = {(listing.boot_id, listing.endpoint) for _, listing in mine}
    return shown and len(one) == 1
