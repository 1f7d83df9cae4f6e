# SPDX-License-Identifier: Apache-2.0
"""How many devices of a job are worked on at once.

1. A task is in flight from the Lease of an attempt until that attempt's end is recorded, an attempt whose pod was lost
   included, and a proven one that waits for its Instance: whatever may still change a device counts. So does a pod that
   was told to end until it has.
2. A task between two attempts is not in flight; its retry needs a free place like everybody's start.
3. Never more than strategy.maxInFlight are in flight. Lowering the limit stops nobody, it only starts nobody.
4. An attempt that was begun (Lease taken) but has no pod yet goes before new ones: its place is taken already.
"""


def free_places(max_in_flight: int, in_flight: int) -> int:
    """Rule 3: how many attempts may begin now."""
    return max(0, max_in_flight - in_flight)
