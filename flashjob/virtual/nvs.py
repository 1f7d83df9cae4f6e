# SPDX-License-Identifier: Apache-2.0
"""What a virtual device remembers over resets, as real firmware does in its NVS partition."""

from __future__ import annotations

from dataclasses import dataclass

from flashjob.virtual.profile import Owner


@dataclass(frozen=True, slots=True)
class PendingInstall:
    """What an accepted installation leaves for its first boot."""

    boot_id: bytes
    sequence: int | None
    """Sequence of the release statement; None where no release reached the device (serial writes)."""
    confirm_seconds: int


@dataclass(slots=True)
class Nvs:
    """Counters and ids that survive a reset. One per device, handed to bootloader and application."""

    boot_count: int = 0
    fence: int = 0
    fence_grant_id: bytes = b""
    """The grant that raised the fence last: it alone may come again with an equal fence."""
    sequence: int = 0
    """Sequence of the last confirmed release."""
    pending: PendingInstall | None = None
    owner: Owner | None = None
    """The owner's keys, once a succession changed those of the provisioning."""
