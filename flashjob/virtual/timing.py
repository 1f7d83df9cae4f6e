# SPDX-License-Identifier: Apache-2.0
"""How long things take on a virtual device. By default nothing takes longer than it must."""

from __future__ import annotations

from dataclasses import dataclass

from flashjob.virtual.flash import SECTOR


@dataclass(frozen=True, slots=True)
class Timing:
    """Simulated times; `speed` divides all of them."""

    line_rate: bool = False
    """Serial bytes take the time that the baud rate asks for."""
    erase_seconds: float = 0.0
    """Of one 4 KiB sector; real chips take about 0.045 s."""
    radio_bytes_per_second: float = 0.0
    """Rate at which an image comes over the network; 0: as fast as it comes."""
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.speed <= 0 or self.erase_seconds < 0 or self.radio_bytes_per_second < 0:
            raise ValueError("simulated times are not negative, and their speed is above 0")

    def erasing(self, bytes_erased: int) -> float:
        """Seconds that this much erased flash has taken."""
        return bytes_erased / SECTOR * self.erase_seconds / self.speed

    def receiving(self, size: int) -> float:
        """Seconds that this many image bytes take over the air, and to find room in flash."""
        air = size / self.radio_bytes_per_second / self.speed if self.radio_bytes_per_second else 0.0
        return air + self.erasing(size)
