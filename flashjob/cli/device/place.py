# SPDX-License-Identifier: Apache-2.0
"""Where a device is, as people write it."""

from dataclasses import dataclass
from typing import Annotated

import typer

from flashjob.errors import FlashJobError
from flashjob.flasher.transports.network import split_address

Target = Annotated[
    str, typer.Argument(metavar="PORT|HOST:PORT", help="Serial port (a path, or a pyserial URL), or network address.")
]


@dataclass(frozen=True, slots=True)
class Place:
    """A serial port (path or URL), or a network address."""

    port: str | None
    address: str | None

    @property
    def name(self) -> str:
        """For people."""
        return self.port or self.address or ""


def place(text: str) -> Place:
    """A path or a serial URL is a port, HOST:PORT (or http://HOST:PORT) an address. Raises BadParameter."""
    address = text.removeprefix("http://").rstrip("/") if text.startswith("http://") else text
    if "/" in address:
        return Place(text, None)
    try:
        split_address(address)
    except FlashJobError as error:
        message = f"{text!r} is neither a serial port (/dev/ttyUSB0) nor HOST:PORT"
        raise typer.BadParameter(message) from error
    return Place(None, address)
