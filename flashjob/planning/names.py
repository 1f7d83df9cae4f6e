# SPDX-License-Identifier: Apache-2.0
"""Names of what the operator makes. They are functions of what the object is about, so a repeated create is harmless.

1. A task: `<job>-<16 base32 of SHA-256(job UID, device id)>`. The UID keeps a job and its re-applied namesake apart.
2. A pod: `<task>-<attempt>`; one that several attempts share: `<first task>-<16 base32 of SHA-256(all of them)>`.
3. A label value holds at most 63 characters: a longer job name keeps its head and ends in a hash of the whole.
"""

import base64
import hashlib
from collections.abc import Sequence
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


def shared_pod_name(attempts: Sequence[tuple[str, int]]) -> str:
    """Rule 2, for the (task, attempt) pairs of one pod."""
    parts = (f"{task}/{attempt}" for task, attempt in attempts)
    return f"{attempts[0][0][: _MAX_NAME + 3]}-{_base32(*parts, length=16)}"


def job_label(job: str) -> str:
    """Rule 3: the value of the label flashjob.dev/job."""
    if len(job) <= _LABEL_LIMIT:
        return job
    return f"{job[:46]}-{_base32(job, length=16)}"
