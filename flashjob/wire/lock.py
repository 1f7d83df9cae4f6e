# SPDX-License-Identifier: Apache-2.0
"""Who holds a device: the holder identity of its Lease, read and written in one form."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """One attempt of one task, as `namespace/task/attempt`."""

    namespace: str
    task: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.namespace}/{self.task}/{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> "Holder | None":
        """The holder of a Lease; None where there is none, or it is not of our making."""
        namespace, _, rest = text.partition("/")
        task, _, attempt = rest.rpartition("/")
        if not namespace or not task or "/" in task or not attempt.isdecimal() or not attempt.isascii():
            return None
        return cls(namespace, task, int(attempt))
