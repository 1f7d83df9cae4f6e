# SPDX-License-Identifier: Apache-2.0
"""Where a device is and how its serial line is driven, as people write it: the same words in every command."""

from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import ValidationError

from flashjob.errors import FlashJobError
from flashjob.flasher.transports.network import read_address
from flashjob.wire.serial import RESET_RULE, SerialSettings

Target = Annotated[
    str,
    typer.Argument(
        metavar="PORT|HOST:PORT", help="Serial port (path or pyserial URL), or network address (https:// for TLS)."
    ),
]
Baud = Annotated[int, typer.Option(help="Serial: line rate of the transfer; a slower one is taken if it fails.")]
Reset = Annotated[str, typer.Option(help=f"Serial: how the chip gets into its loader: {RESET_RULE}.")]
Stub = Annotated[bool, typer.Option(help="Serial: whether esptool may load its RAM stub.")]
BAUD, RESET, STUB = (SerialSettings.model_fields[name].default for name in ("baud", "reset", "stub"))


def serial_settings(baud: int, reset: str, stub: bool) -> SerialSettings:
    """The options --baud, --reset and --stub together. Raises BadParameter."""
    try:
        return SerialSettings(baud=baud, reset=reset, stub=stub)
    except ValidationError as error:
        first = error.errors()[0]
        option, given = first["loc"][0], first["input"]
        why = f"it is one of {RESET_RULE}" if option == "reset" else first["msg"].lower()
        raise typer.BadParameter(f"--{option} {given}: {why}") from error


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
    """A path or a serial URL is a port, HOST:PORT (or http[s]://HOST:PORT) an address. Raises BadParameter."""
    address = text.removeprefix("http://").rstrip("/") if text.startswith(("http://", "https://")) else text
    if "/" in address.removeprefix("https://"):
        return Place(text, None)
    try:
        read_address(address)
    except FlashJobError as error:
        message = f"{text!r} is neither a serial port (/dev/ttyUSB0) nor HOST:PORT"
        raise typer.BadParameter(message) from error
    return Place(None, address)


def on_network(text: str) -> str:
    """The address in a --host option. Raises BadParameter."""
    address = place(text).address
    if address is None:
        raise typer.BadParameter(f"--host {text!r} is not HOST:PORT, with https:// before it for TLS")
    return address
