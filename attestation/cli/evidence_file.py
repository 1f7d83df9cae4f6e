# SPDX-License-Identifier: Apache-2.0
"""Evidence as a file: how it is named, read, and what is said of a file that is something else."""

import re
from typing import Annotated, Final

import typer

from attestation import eat
from attestation.cli.common import read_input, say

EvidenceFile = Annotated[str, typer.Argument(metavar="EVIDENCE", help="File with the evidence; - reads stdin.")]

_FIRST_BYTE: Final = b"\x84"
"""CBOR's array of 4."""
_KINDS: Final = (
    (re.compile(rb"\s*-----BEGIN "), "PEM"),
    (re.compile(rb"\s*[{[]\s*[\"\]}{\d[]"), "JSON"),
    (re.compile(rb"\s*([0-9A-Fa-f]{2}\s*)+\Z"), "hex: decode it first"),
    (re.compile(rb"\s*[-\w+/]{4}[-\w+/=\s]*\Z"), "base64: decode it first"),
    (re.compile(rb"\x30[\x81\x82]"), "DER, perhaps a certificate alone"),
)


def read_evidence(name: str) -> bytes:
    """A file with evidence, or standard input for ``-``; what is plainly something else is said on standard error."""
    data = read_input(name, eat.EVIDENCE_LIMIT)
    if hint := looks_like(data):
        say(hint)
    return data


def looks_like(data: bytes) -> str:
    """What this is instead of evidence, for people; empty where it begins as evidence does."""
    if data.startswith(_FIRST_BYTE):
        return ""
    found = next((kind for pattern, kind in _KINDS if pattern.match(data)), "something else" if data else "empty")
    return (
        "evidence is binary CBOR, [1, anchor id, [certificates], EAT], as a device answers it or"
        f" `attest ask --save` writes it; this is {found}"
    )
