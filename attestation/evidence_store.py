# SPDX-License-Identifier: Apache-2.0
"""Evidence records in a directory: named by their SHA-256, listed in an index that is only ever appended to.

| path | holds |
|---|---|
| ``records/<sha256>.json`` | one signed record; the name is the hash of the file |
| ``index.jsonl`` | one line per record, oldest first; each names the SHA-256 of the line before |

Rules (tests name them):

1. A record is on disk, flushed, before its line is; so a crash leaves at most a record without a line, which is harmless:
   who adds that record again gets its line.
2. A line that is changed, moved or taken out breaks the chain for all that follow; so does a record that is missing or
   has another hash (``record.hash``). Lines cut off at the end are not noticed by the directory alone: ship the newest
   line's hash (``head``) elsewhere, where that matters.
3. One writer at a time. Half a last line, as a crash leaves it, is cut off by the next writer. A last line that goes on
   behind its closing brace with anything but a newline was changed: it is refused, and never cut off.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from attestation import evidence, files
from attestation.dsse import LIMIT_BYTES
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey

_INDEX_LIMIT: Final = 1024 * 1024 * 1024
_FIRST: Final = "0" * 64


def verifier_build() -> str:
    """Name and version of the program that judges, as records name it."""
    try:
        return f"flashjob {version('flashjob')}"
    except PackageNotFoundError:
        return "flashjob, not installed"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the index."""

    record: str
    device: str
    at: int
    accepted: bool
    policy_hash: str
    previous: str

    def encode(self) -> bytes:
        """As it stands in the file."""
        content = {
            "record": self.record,
            "device": self.device,
            "at": self.at,
            "accepted": self.accepted,
            "policyHash": self.policy_hash,
            "previous": self.previous,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    def require(self, record: evidence.Record) -> None:
        """That it says of its record what that says itself. Raises Reject ``record.hash``."""
        told = (record.id, record.at, record.verdict.accepted, record.policy_hash.hex())
        if told != (self.device, self.at, self.accepted, self.policy_hash):
            message = f"the index names another device, time, verdict or policy than record {self.record}"
            raise Reject(Code.RECORD_HASH, message)

    @classmethod
    def decode(cls, line: bytes, number: int) -> "Line":
        """Raises Reject ``record.structure`` for anything that ``encode`` does not write."""
        try:
            said = json.loads(line)
            found = cls(
                said["record"], said["device"], said["at"], said["accepted"], said["policyHash"], said["previous"]
            )
            if found.encode() != line:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Reject(Code.RECORD_STRUCTURE, f"line {number} of the index is not one of ours") from error
        return found


class EvidenceStore:
    """A directory of records.

    Args:
        root: the directory.
        create: make it where it is missing.

    Raises:
        Reject: ``store.unavailable``.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        if create:
            try:
                (root / "records").mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise Reject(Code.STORE_UNAVAILABLE, f"{root}: {error.strerror}") from error
        if not (root / "records").is_dir():
            raise Reject(
                Code.STORE_UNAVAILABLE, f"{root} holds no evidence records: name a directory given as --evidence-dir"
            )

    def add(self, payload: bytes, key: PrivateKey) -> str:
        """Sign and keep a record; returns its SHA-256, hex.

        Args:
            payload: of ``evidence.record``.
            key: signs it.

        Raises:
            Reject: it could not be kept.
        """
        envelope = evidence.seal(payload, key)
        name, said = hashlib.sha256(envelope).hexdigest(), json.loads(payload)
        with files.one_writer(self.root / ".lock"):
            path = self.root / "records" / f"{name}.json"
            if path.exists() and any(line.record == name for line in self.lines()):
                return name
            files.replace(path, envelope)
            line = Line(
                name, said["id"], said["at"], said["verdict"]["accepted"], said["policyHash"], self._mend_and_head()
            )
            files.append(self.root / "index.jsonl", line.encode())
        return name

    def lines(self) -> Iterator[Line]:
        """The index, its chain checked. Raises Reject (rule 2)."""
        previous = _FIRST
        for number, raw in enumerate(self._index().splitlines(keepends=True), 1):
            if not raw.endswith(b"\n"):
                _check_half(raw)
                return  # its writer did not come to the end
            line = Line.decode(raw, number)
            if line.previous != previous:
                raise Reject(Code.RECORD_HASH, f"line {number} of the index does not follow the line before it")
            yield line
            previous = hashlib.sha256(raw).hexdigest()

    def envelope(self, name: str) -> bytes:
        """A record as stored, its hash checked. Raises Reject."""
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise Reject(Code.RECORD_STRUCTURE, f"{name!r:.80} is no SHA-256")
        path = self.root / "records" / f"{name}.json"
        if not path.exists():
            raise Reject(Code.RECORD_HASH, f"record {name} is in the index and not in {path.parent}")
        content = files.read(path, LIMIT_BYTES)
        if hashlib.sha256(content).hexdigest() != name:
            raise Reject(Code.RECORD_HASH, f"record {name} was changed: its content has another hash")
        return content

    def head(self) -> str:
        """SHA-256 of the newest whole line, hex: what pins the whole index. Raises Reject."""
        whole = self._index().rpartition(b"\n")[0]
        return hashlib.sha256(whole.rpartition(b"\n")[2] + b"\n").hexdigest() if whole else _FIRST

    def _index(self) -> bytes:
        path = self.root / "index.jsonl"
        return files.read(path, _INDEX_LIMIT) if path.exists() else b""

    def _mend_and_head(self) -> str:
        """Rule 3. Reads only the end of the index."""
        path = self.root / "index.jsonl"
        if not path.exists():
            return _FIRST
        try:
            with path.open("r+b") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - 64 * 1024))
                tail = file.read()
                half = tail.rpartition(b"\n")[2]
                if half:
                    _check_half(half)
                    file.truncate(size - len(half))
        except OSError as error:
            raise Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}") from error
        whole = tail[: len(tail) - len(half)]
        last = whole[:-1].rpartition(b"\n")[2]
        return hashlib.sha256(last + b"\n").hexdigest() if whole else _FIRST


def _check_half(line: bytes) -> None:
    """Rule 3: a crash leaves the beginning of a line. Raises Reject for anything behind its end."""
    if b"}" in line[:-1]:
        raise Reject(Code.RECORD_STRUCTURE, "the last line of the index goes on behind its end: it was changed")
