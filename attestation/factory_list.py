# SPDX-License-Identifier: Apache-2.0
"""The maker's list of UDS public keys, as CSV or CBOR. Pure.

Rules (tests name them); the first that is broken ends the reading, so a list is enrolled whole or not at all:

1. At most `LIMIT_BYTES` and `MOST_DEVICES`; not empty.
2. CSV: UTF-8, first line ``cose_key,proof`` and then, in any order, ``oemid`` and ``hwmodel`` where wanted; keys and proofs
   in base64url without padding, oemid in hex. CBOR: {1: batch, 2: [+ {1: COSE_Key, 2: proof, ?3: oemid, ?4: hwmodel}]}.
3. Every key is a usable COSE_Key, and not that of an unprovisioned device.
4. Every key is proved to be held, for this very batch (``enrolment.check_proof``).
5. No key stands in the list twice.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from attestation import keys
from attestation.cbor import Value, Writable, dumps, strict_loads
from attestation.device_file import base64url, from_base64url
from attestation.enrolment import check_proof
from attestation.errors import Code, Reject
from attestation.keys import PublicKey

LIMIT_BYTES: Final = 64 * 1024 * 1024
MOST_DEVICES: Final = 100_000
_COLUMNS: Final = ("cose_key", "proof", "oemid", "hwmodel")
_MOST_HWMODEL: Final = 32


@dataclass(frozen=True, slots=True)
class Listed:
    """One device of a list, its proof checked."""

    key: PublicKey
    oemid: bytes | None = None
    hwmodel: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One row as it stands."""

    cose_key: bytes
    proof: bytes
    oemid: bytes | None = None
    hwmodel: str | None = None


def read(data: bytes, batch: str) -> tuple[Listed, ...]:
    """Read and check a list of either form.

    Args:
        data: the file. CBOR is told by its first byte, a map of 2.
        batch: the batch that is to be enrolled.

    Raises:
        Reject: ``enrol.list`` or ``enrol.proof``, with the number of the row.
    """
    if not 0 < len(data) <= LIMIT_BYTES:
        raise Reject(Code.ENROL_LIST, f"a list has 1 to {LIMIT_BYTES} bytes, not {len(data)}")
    rows = _cbor(data, batch) if data[0] == 0xA2 else _csv(data)
    found: list[Listed] = []
    seen: dict[bytes, int] = {}
    for number, entry in enumerate(rows, 1):
        if number > MOST_DEVICES:
            raise Reject(Code.ENROL_LIST, f"more than {MOST_DEVICES} devices: split the list")
        try:
            listed = _check(entry, batch)
        except Reject as reject:
            known = reject.code in (Code.ENROL_PROOF, Code.ENROL_LIST)
            code, why = (reject.code, reject.message) if known else (Code.ENROL_LIST, str(reject))
            raise Reject(code, f"device {number}: {why}") from reject
        first = seen.setdefault(keys.raw(listed.key), number)
        if first != number:
            raise Reject(Code.ENROL_LIST, f"device {number} has the key of device {first}")
        found.append(listed)
    if not found:
        raise Reject(Code.ENROL_LIST, "the list names no device")
    return tuple(found)


def write_csv(entries: list[Entry]) -> bytes:
    """A list as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in entries:
        oemid = one.oemid.hex() if one.oemid else ""
        writer.writerow((base64url(one.cose_key), base64url(one.proof), oemid, one.hwmodel or ""))
    return out.getvalue().encode()


def write_cbor(entries: list[Entry], batch: str) -> bytes:
    """A list as CBOR."""
    rows: list[Writable] = []
    for one in entries:
        row: dict[int, Writable] = {1: one.cose_key, 2: one.proof}
        if one.oemid is not None:
            row[3] = one.oemid
        if one.hwmodel is not None:
            row[4] = one.hwmodel
        rows.append(row)
    return dumps({1: batch, 2: rows})


def _check(entry: Entry, batch: str) -> Listed:
    """Rules 3 and 4."""
    key = keys.from_cose(entry.cose_key)
    if keys.dice_id(key) in keys.UNPROVISIONED_IDS:
        raise Reject(Code.KEY_UNPROVISIONED, "the key belongs to the all-zero device secret")
    if entry.oemid is not None and len(entry.oemid) not in (3, 16):
        raise Reject(Code.ENROL_LIST, f"oemid has 3 or 16 bytes, not {len(entry.oemid)}")
    if entry.hwmodel is not None and not 1 <= len(entry.hwmodel.encode()) <= _MOST_HWMODEL:
        raise Reject(Code.ENROL_LIST, f"hwmodel has 1 to {_MOST_HWMODEL} bytes")
    check_proof(entry.proof, key, batch)
    return Listed(key, entry.oemid, entry.hwmodel)


def _csv(data: bytes) -> Iterator[Entry]:
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = next(rows, [])
        if header[:2] != ["cose_key", "proof"] or not set(header) <= set(_COLUMNS) or len(set(header)) != len(header):
            raise Reject(
                Code.ENROL_LIST,
                f"the first line is {','.join(header)!r:.80}, expected cose_key,proof[,oemid][,hwmodel]",
            )
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise Reject(Code.ENROL_LIST, f"line {rows.line_num} has {len(row)} fields, the header {len(header)}")
            fields = dict(zip(header, row, strict=True))
            try:
                yield Entry(
                    from_base64url(fields["cose_key"]),
                    from_base64url(fields["proof"]),
                    bytes.fromhex(fields["oemid"]) if fields.get("oemid") else None,
                    fields.get("hwmodel") or None,
                )
            except ValueError as error:
                raise Reject(Code.ENROL_LIST, f"line {rows.line_num}: {error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Reject(Code.ENROL_LIST, f"the list is neither CBOR nor CSV in UTF-8: {error}") from error


def _cbor(data: bytes, batch: str) -> Iterator[Entry]:
    try:
        content = strict_loads(data, LIMIT_BYTES, max_items=16 + 10 * MOST_DEVICES)
    except Reject as reject:
        raise Reject(Code.ENROL_LIST, f"the list is not strict CBOR: {reject}") from reject
    if not isinstance(content, dict) or content.keys() != {1, 2} or not isinstance(content[2], list):
        raise Reject(Code.ENROL_LIST, "the list is not {1: batch, 2: [devices]}")
    if content[1] != batch:
        raise Reject(Code.ENROL_LIST, f"the list is of batch {content[1]!r:.80}, not {batch!r:.80}")
    for number, row in enumerate(content[2], 1):
        yield _row(row, number)


def _row(row: Value, number: int) -> Entry:
    if not isinstance(row, dict) or not {1, 2} <= row.keys() <= {1, 2, 3, 4}:
        raise Reject(Code.ENROL_LIST, f"device {number} is not {{1: key, 2: proof, ?3: oemid, ?4: hwmodel}}")
    key, proof, oemid, hwmodel = row[1], row[2], row.get(3), row.get(4)
    if not isinstance(key, bytes) or not isinstance(proof, bytes):
        raise Reject(Code.ENROL_LIST, f"device {number}: key and proof are byte strings")
    if (oemid is not None and not isinstance(oemid, bytes)) or (hwmodel is not None and not isinstance(hwmodel, str)):
        raise Reject(Code.ENROL_LIST, f"device {number}: oemid is a byte string, hwmodel text")
    return Entry(key, proof, oemid, hwmodel)
