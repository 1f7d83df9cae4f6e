# SPDX-License-Identifier: Apache-2.0
"""The audit log: one JSON line per result.

Rules (tests name them):

1. The line is with the operating system before the result leaves; a result whose line cannot be written does not leave
   (``records.unavailable``). So a crash of the service loses no line.
2. Lines are flushed to the disk once a second, and at the end: a power loss may lose the last second.
3. A line is written by one append, so that several replicas may share a file on one machine.
4. It holds no key, no evidence and no certificate: only their hashes.
5. ``reopen`` (SIGHUP) goes on in a new file of the same name, for rotation by renaming.
"""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.ear import status_of
from attestation.errors import Code, Reject
from attestation.verdict import Verdict


class AuditLog:
    """An open audit log; for threads.

    Args:
        path: the file; made 0600 where it is missing.

    Raises:
        Reject: ``store.unavailable``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._dirty = False
        self._handle = self._open()

    def write(self, line: dict[str, Any]) -> None:
        """Rules 1 and 3. Raises Reject."""
        raw = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                written = os.write(self._handle, raw)
            except OSError as error:
                raise self._unavailable(error) from error
            self._dirty = True
        if written != len(raw):
            raise Reject(Code.STORE_UNAVAILABLE, f"{self._path}: the disk is full")

    def flush(self) -> None:
        """Rule 2. Raises Reject."""
        with self._lock:
            if not self._dirty:
                return
            self._dirty = False
            handle = os.dup(self._handle)
        try:
            os.fsync(handle)  # outside the lock: a slow disk holds up no result
        except OSError as error:
            raise self._unavailable(error) from error
        finally:
            os.close(handle)

    def reopen(self) -> None:
        """Rule 5. Raises Reject: the old file stays open."""
        handle = self._open()
        with self._lock:
            old, self._handle = self._handle, handle
        os.fsync(old)
        os.close(old)

    def close(self) -> None:
        """Flush and close. Raises Reject."""
        self.flush()
        with self._lock:
            os.close(self._handle)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError) -> Reject:
        return Reject(Code.STORE_UNAVAILABLE, f"audit log {self._path}: {error.strerror}")


def line_of(verdict: Verdict, *, ueid: bytes, audience: str, nonce: bytes, policy: str, now: float) -> dict[str, Any]:
    """What is written about one result (rule 4).

    Args:
        verdict: what was decided.
        ueid, audience, nonce: what was asked.
        policy: name of the policy.
        now: Unix time in seconds.
    """
    claims = verdict.claims
    return {
        "at": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "ueid": ueid.hex(),
        "audience": audience,
        "nonce": nonce.hex(),
        "status": status_of(verdict).name.lower(),
        "code": verdict.code.value if verdict.code else "accepted",
        "message": verdict.message,
        "rootOfTrust": verdict.tier.value if verdict.tier else None,
        "policy": policy,
        "policySha256": verdict.policy_hash.hex() if verdict.policy_hash else None,
        "evidenceSha256": verdict.evidence_sha256.hex(),
        "application": claims.application if claims else None,
        "measurement": claims.measurement.full if claims else None,
        "bootId": claims.boot_id.hex() if claims else None,
    }
