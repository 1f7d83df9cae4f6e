# SPDX-License-Identifier: Apache-2.0
"""What DTR and RTS of a serial line do to a chip, by the way the board is wired. Pure.

Sources: the auto-reset circuit of Espressif's development boards; ESP32-C3 technical reference manual, USB Serial/JTAG
controller, "CDC-ACM DTR and RTS". `True` is asserted, as pyserial has it.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class Pull(Enum):
    """What a change of the lines does."""

    HOLD = "hold"
    """The chip is held in reset."""
    LOADER = "loader"
    """It starts in its loader."""
    RUN = "run"
    """It starts its application."""


class ResetLines(Protocol):
    """A board's wiring."""

    def change(self, dtr: bool, rts: bool) -> Pull | None:
        """The lines are so now, whether they changed or not; None: nothing happens."""


@dataclass(slots=True)
class UartBridge:
    """RTS holds the chip, and DTR at its release pulls the boot pin (`inverted`: lets it go)."""

    inverted: bool = False
    _held: bool = field(default=False, init=False)

    def change(self, dtr: bool, rts: bool) -> Pull | None:
        if rts == self._held:
            return None
        self._held = rts
        if rts:
            return Pull.HOLD
        return Pull.LOADER if dtr is not self.inverted else Pull.RUN


@dataclass(slots=True)
class UsbSerialJtag:
    """The chip's own USB: with RTS off DTR is remembered, RTS alone resets into what was remembered, both do nothing."""

    _download: bool = field(default=False, init=False)
    _lines: tuple[bool, bool] = field(default=(False, False), init=False)

    def change(self, dtr: bool, rts: bool) -> Pull | None:
        before, self._lines = self._lines, (dtr, rts)
        if not rts:
            self._download = dtr
        if (dtr, rts) != (False, True) or before == (dtr, rts):
            return None
        return Pull.LOADER if self._download else Pull.RUN
