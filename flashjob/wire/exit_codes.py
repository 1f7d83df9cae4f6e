# SPDX-License-Identifier: Apache-2.0
"""Exit codes of the flashing pod and of the command line. They help people and scripts; no verdict rests on them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a process of ours ends with."""

    DONE = 0
    """Everything was carried out. For a pod: the gateway has the evidence; whether it convinced is not said here."""
    FAILED = 1
    """A device failed; for `flashjob flash`: the verdict is not a success."""
    USAGE = 2
    """Wrong arguments or environment."""
    REFUSED = 3
    """Refused before the first byte."""
    UNPROVEN = 4
    """Written and seen, but not proven at the demanded root of trust."""
    STOPPED = 143
    """Ended by SIGTERM."""
