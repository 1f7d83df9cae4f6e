# SPDX-License-Identifier: Apache-2.0
"""Names of what the operator makes. They are functions of what the object is about, so a repeated create is harmless.

1. A task: `<job>-<16 base32 of SHA-256(job UID, device id)>`. The UID keeps a job and its re-applied namesake apart.
2. A pod: `<task>-<attempt>`.
3. A device's Lease: `fj-<32 base32 of SHA-256(device id)>`; holder `<namespace>/<task>/<attempt>`.
4. A label value holds at most 63 characters: a longer job name keeps its head and ends in a hash of the whole.
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import Final

_LABEL_LIMIT: Final = 63
_MAX_NAME: Final = 253 - 1 - 16 - 4


def _base32(*parts: str, length: int) -> str:
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:length]


def task_name(job: str, job_uid: str, device_id: str) -> str:
    """Rule 1. A job name too long for the pods' names is cut; the hash keeps it unique."""
    return f"{job[:_MAX_NAME]}-{_base32(job_uid, device_id, length=16)}"


def pod_name(task: str, attempt: int) -> str:
    """Rule 2."""
    return f"{task}-{attempt}"


def lease_name(device_id: str) -> str:
    """Rule 3."""
    return f"fj-{_base32(device_id, length=32)}"


def job_label(job: str) -> str:
    """Rule 4: the value of the label flashjob.dev/job."""
    if len(job) <= _LABEL_LIMIT:
        return job
    return f"{job[:46]}-{_base32(job, length=16)}"


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose attempt holds a device's Lease."""

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
        if not namespace or not task or not attempt.isdecimal() or not attempt.isascii():
            return None
        return cls(namespace, task, int(attempt))
