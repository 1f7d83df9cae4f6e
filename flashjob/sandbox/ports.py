# SPDX-License-Identifier: Apache-2.0
"""Free loopback ports. Between the choice and the use another process may take the port: callers try again."""

from __future__ import annotations

import socket
from typing import Final

PORT_ATTEMPTS: Final = 3
ADDRESS_IN_USE: Final = "address already in use"
"""What Go programs say when somebody was faster."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
