# SPDX-License-Identifier: Apache-2.0
"""What every way to a device offers to a flashing attempt. Errors are `FlashJobError` with a wire reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, Protocol

from attestation.device_protocol import DeviceError, Info, Verb
from firmware_pipeline.hardware import HardwareFacts
from flashjob.errors import FlashJobError
from flashjob.wire.gateway import PermitReply
from flashjob.wire.reasons import Reason

if TYPE_CHECKING:
    from flashjob.flasher.content import Content

Progress = Callable[[int, int], None]
"""Called with (done, total) in bytes of the wire."""

Locate = Callable[[], Awaitable[str | None]]
"""Asks where the device is now; None: where it was."""

SILENT = (Reason.PORT_SILENT, Reason.DEVICE_UNREACHABLE, Reason.TRANSPORT_LOST)
"""Reasons of a device that does not answer. A port that is away is more than silence: without it there is no loader either."""


class PermitSpent(FlashJobError):
    """The device reset in mid-upload and forgot the grant: a new one of the same attempt is needed."""


class Transport(Protocol):
    """One device. `probe` comes before `write`, `write` before `reboot`; `close` may come at any time."""

    @property
    def kind(self) -> Literal["serial", "network"]:
        """What rules of compatibility apply."""
        ...

    @property
    def bytes_written(self) -> int:
        """Bytes of flash that this object wrote or asked the device to write; counts failed writes too."""
        ...

    async def info(self, seconds: float, locate: Locate | None = None) -> Info:
        """What the running application says of itself, waiting for it at most `seconds`.

        With `locate` it may have reset: another address is looked for, and a port that is away may come back.
        """
        ...

    async def evidence(self, nonce: bytes) -> bytes:
        """Evidence of the running application over a 32-byte nonce."""
        ...

    async def device_nonce(self, verb: Verb) -> bytes:
        """The device's own 16-byte nonce for a grant of this verb."""
        ...

    async def confirm(self, grant: bytes) -> bytes:
        """Hand over a confirm grant; evidence over its second nonce."""
        ...

    async def revert(self, grant: bytes, seconds: float, locate: Locate) -> Info:
        """Hand over a revert grant, and wait at most `seconds` for the boot after it to answer."""
        ...

    async def install_nonce(self) -> bytes | None:
        """The device nonce that an install grant must carry; None where no grant is sent."""
        ...

    async def probe(self, partition_table_offset: int, content: Content | None = None) -> HardwareFacts:
        """Read what the hardware is and plan a place for `content` (None: an application for the inactive slot).

        Serial: the chip leaves its application for the loader.
        """
        ...

    async def write(self, image: bytes, permit: PermitReply, progress: Progress) -> None:
        """Write the inactive slot, verify it, and select it with the permit's grant id as boot id.

        Raises:
            PermitSpent: ask for a permit again, then call this again.
        """
        ...

    async def reboot(self, seconds: float, locate: Locate) -> Info:
        """Start the new image and wait at most `seconds` for its application to answer."""
        ...

    async def abandon(self) -> None:
        """Nothing is to be written: let the application run again."""
        ...

    async def close(self) -> None:
        """Release port or connection; ends a write at once."""
        ...


_REASONS = {
    "PortBusy": Reason.PORT_BUSY,
    "Refused": Reason.DEVICE_REFUSED,
    "ConnectionLost": Reason.TRANSPORT_LOST,
}


def failure(error: DeviceError, silent: Reason) -> FlashJobError:
    """The attempt's error for a device's; `silent` is the reason for a device that does not answer."""
    reason = _REASONS.get(error.reason, silent)
    return FlashJobError(reason.value, error.message, reason.next_step)


def problem(reason: Reason, message: str) -> FlashJobError:
    """An error with the reason's own next step."""
    return FlashJobError(reason.value, message, reason.next_step)
