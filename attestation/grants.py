# SPDX-License-Identifier: Apache-2.0
"""Grants: the gateway's signed permission for one change on one device. Pure.

Rules (tests name them):

1. A grant is a statement of content type ``application/vnd.flashjob.grant+cbor``, at most 1,024 bytes with all it
   carries.
2. Every grant names verb, device (ueid), a nonce of that device, the grant id, the fence and the expected result.
3. An install grant also carries the payload's SHA-256, size and format, the release statement and the confirm deadline;
   `base` if and only if the payload is a delta; `allow_downgrade` is true or absent.
4. A confirm grant also carries the second nonce: the device answers with evidence over it.
5. Any other label is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from attestation import statement
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey, PublicKey
from attestation.statement import Bytes16, Bytes32, DigestField, Statement, Strict, Ueid, Uint, Uint32, by_key_id

CONTENT_TYPE: Final = "application/vnd.flashjob.grant+cbor"
MAX_GRANT_BYTES: Final = 1024
GRANT_ID_SIZE: Final = 16
NO_BOOT_ID: Final = bytes(GRANT_ID_SIZE)

__all__ = ["CancelGrant", "ConfirmGrant", "Grant", "InstallGrant", "PayloadFormat", "RevertGrant", "SignedGrant",
           "Verb", "by_key_id", "check", "mint", "parse"]  # fmt: skip


class Verb(IntEnum):
    """What a grant permits."""

    INSTALL = 1
    CONFIRM = 2
    REVERT = 3
    CANCEL = 4


class PayloadFormat(IntEnum):
    """How the payload becomes the image."""

    RAW = 0
    ESP_DELTA = 1


def _format(value: object) -> object:
    return PayloadFormat(value) if type(value) is int else value


class _Common(Strict):
    ueid: Ueid
    device_nonce: Bytes16
    grant_id: Bytes16
    fence: Uint
    result: DigestField
    """Measurement of the application that runs when the change is done."""

    @model_validator(mode="after")
    def _real_id(self) -> Self:
        if self.grant_id == NO_BOOT_ID:
            raise ValueError("sixteen zero bytes mean 'no boot id' and cannot be a grant id")
        return self


class InstallGrant(_Common):
    """Permission to write one image into the inactive slot and to boot it once."""

    verb: Literal[1] = 1
    payload_sha256: Bytes32
    payload_size: Annotated[int, Field(gt=0, le=2**32 - 1)]
    payload_format: Annotated[PayloadFormat, BeforeValidator(_format)] = PayloadFormat.RAW
    base: DigestField | None = None
    release: Annotated[bytes, Field(min_length=1, max_length=768)]
    confirm_seconds: Annotated[Uint32, Field(gt=0)]
    allow_downgrade: bool | None = None

    @field_validator("allow_downgrade")
    @classmethod
    def _true_or_absent(cls, value: bool | None) -> bool | None:
        if value is False:
            raise ValueError("is true or absent")
        return value

    @model_validator(mode="after")
    def _base_for_delta(self) -> Self:
        if (self.base is not None) != (self.payload_format is PayloadFormat.ESP_DELTA):
            raise ValueError("a base digest belongs to a delta payload, and only to one")
        return self


class ConfirmGrant(_Common):
    """Permission to keep the running installation for good."""

    verb: Literal[2] = 2
    second_nonce: Bytes32


class RevertGrant(_Common):
    """Order to give up the running, unconfirmed installation and to boot the previous one."""

    verb: Literal[3] = 3


class CancelGrant(_Common):
    """Order to give up an installation that is still being received."""

    verb: Literal[4] = 4


Grant: TypeAlias = InstallGrant | ConfirmGrant | RevertGrant | CancelGrant
SignedGrant: TypeAlias = Statement[InstallGrant | ConfirmGrant | RevertGrant | CancelGrant]

_COMMON = {1: "verb", 2: "ueid", 3: "device_nonce", 4: "grant_id", 5: "fence", 6: "result"}
_INSTALL = {
    **_COMMON,
    7: "payload_sha256",
    8: "payload_size",
    9: "payload_format",
    10: "base",
    11: "release",
    12: "confirm_seconds",
    13: "allow_downgrade",
}
_CONFIRM = {**_COMMON, 14: "second_nonce"}
_LABELS: Final[dict[int, tuple[type[Grant], dict[int, str]]]] = {
    Verb.INSTALL: (InstallGrant, _INSTALL),
    Verb.CONFIRM: (ConfirmGrant, _CONFIRM),
    Verb.REVERT: (RevertGrant, _COMMON),
    Verb.CANCEL: (CancelGrant, _COMMON),
}


def mint(grant: Grant, key: PrivateKey) -> bytes:
    """Sign a grant.

    Raises:
        Reject: ``size``, the grant with its release statement exceeds 1,024 bytes.
    """
    data = statement.write(grant, _LABELS[grant.verb][1], CONTENT_TYPE, key)
    if len(data) > MAX_GRANT_BYTES:
        raise Reject(Code.SIZE, f"the grant has {len(data)} bytes, devices take at most {MAX_GRANT_BYTES}")
    return data


def parse(data: bytes) -> SignedGrant:
    """Check the shape of a grant (rules 1 to 5), not yet its signature.

    Raises:
        Reject: ``size``, ``cbor.*``, ``cose.*`` or ``grant.structure``.
    """
    message, kid, labels = statement.parse(data, CONTENT_TYPE, limit=MAX_GRANT_BYTES, code=Code.GRANT_STRUCTURE)
    verb: Any = labels.get(1)
    if type(verb) is not int or verb not in _LABELS:
        raise Reject(Code.GRANT_STRUCTURE, f"verb {verb!r} is none of 1 install, 2 confirm, 3 revert, 4 cancel")
    model, names = _LABELS[verb]
    if verb == Verb.INSTALL and 9 not in labels:
        raise Reject(Code.GRANT_STRUCTURE, "an install grant names the payload format (label 9)")
    return Statement(statement.build(model, names, labels, Code.GRANT_STRUCTURE), kid, message)


def check(signed: SignedGrant, keys: Mapping[bytes, PublicKey]) -> Grant:
    """Check key and signature of a parsed grant and return its content.

    Raises:
        Reject: ``statement.key``, ``cose.keyalg`` or ``sig.*``.
    """
    return statement.check_signature(signed, keys)
