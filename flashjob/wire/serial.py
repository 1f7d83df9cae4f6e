# SPDX-License-Identifier: Apache-2.0
"""How a board's serial line is driven: one model for the Device, the flashing pod, the bench and the esptool program.

The reset sequence is esptool's language (docs.espressif.com, esptool "custom_reset_sequence"), in its strict form: `D` and
`R` set DTR and RTS (1 = asserted), `U` both at once, `W` waits seconds.
"""

from typing import Annotated, Final

from pydantic import Field

from .base import WireModel

_STEP: Final = r"([DR][01]|U[01],[01]|W[0-9](\.[0-9]{1,3})?)"
RESET_PATTERN: Final = rf"^(auto|usb-jtag|classic|none|{_STEP}(\|{_STEP}){{0,31}})$"
RESET_RULE: Final = "auto, usb-jtag, classic, none, or at most 32 steps as D0|R1|W0.1|D1|R0|W0.05|D0"
"""What the pattern says, for people."""


class SerialSettings(WireModel):
    """Line rate, way into the loader, stub."""

    baud: Annotated[
        int,
        Field(
            ge=9600, le=4_000_000, description="Line rate of the transfer; a slower one is taken if it does not carry."
        ),
    ] = 460_800
    reset: Annotated[
        str,
        Field(
            pattern=RESET_PATTERN,
            max_length=256,
            description=f"How the chip gets into its loader: {RESET_RULE}.",
        ),
    ] = "auto"
    stub: Annotated[bool, Field(description="Let esptool load its RAM stub; without it the ROM loader writes.")] = True


USUAL: Final = SerialSettings()
"""What most boards want."""
