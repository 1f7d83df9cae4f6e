# SPDX-License-Identifier: Apache-2.0
"""What boards make of DTR and RTS: each of esptool's ways brings those into their loader that are wired for it."""

from itertools import pairwise

import pytest

from flashjob.virtual.reset_lines import Pull, ResetLines, UartBridge, UsbSerialJtag

CLASSIC = "D0|R1|D1|R0|D0"
INVERTED = "D1|R1|D0|R0|D1"
USB_JTAG = "R0|D0|D1|R0|R1|D0|D0|R1|D0|D0|R0|D0"
"""As esptool 5.6 sends it: every RTS is followed by the DTR that is set already."""


def pulls(wiring: ResetLines, sequence: str) -> list[Pull]:
    dtr = rts = False
    out = []
    for step in sequence.split("|"):
        dtr, rts = (step[1] == "1", rts) if step[0] == "D" else (dtr, step[1] == "1")
        out.append(wiring.change(dtr, rts))
    return [pull for pull in out if pull is not None]


@pytest.mark.parametrize(
    ("wiring", "sequence", "ends"),
    [
        (UartBridge, CLASSIC, Pull.LOADER),
        (UartBridge, "R1|R0", Pull.RUN),
        (UartBridge, INVERTED, Pull.RUN),
        (lambda: UartBridge(inverted=True), INVERTED, Pull.LOADER),
        (lambda: UartBridge(inverted=True), CLASSIC, Pull.RUN),
        (UsbSerialJtag, USB_JTAG, Pull.LOADER),
        (UsbSerialJtag, CLASSIC, Pull.RUN),
        (UsbSerialJtag, "R1|R0", Pull.RUN),
    ],
)
def test_where_a_sequence_leads(wiring: type[ResetLines], sequence: str, ends: Pull) -> None:
    assert pulls(wiring(), sequence)[-1] is ends


def test_a_line_that_does_not_change_does_nothing() -> None:
    for wiring in (UartBridge(), UsbSerialJtag()):
        assert pulls(wiring, "D0|R0|D1|D0|D1|D0") == []
        assert [a for a, b in pairwise(pulls(wiring, "R1|R1|R1|R0|R0")) if a is b] == []
