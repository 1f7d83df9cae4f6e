# SPDX-License-Identifier: Apache-2.0
"""Signed statements of FlashJob's own (grant, release, succession): one way to read, check and write them. Pure.

A statement is an untagged COSE_Sign1 whose protected header holds exactly alg, content type and kid, and whose payload
is a CBOR map with integer labels. `parse` and `build` check shape and types, `check_signature` the key and the
signature: a device must be able to refuse by shape, state and fence before it spends time on curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from attestation import cose
from attestation.cbor import dumps, strict_loads
from attestation.errors import Code, Reject
from attestation.keys import Alg, PrivateKey, PublicKey, key_id

SHA_256: Final = -16
SHA_512: Final = -44
_DIGEST_SIZE: Final = {SHA_256: 32, SHA_512: 64}
SIGNING_ALGS: Final = frozenset({Alg.ES256, Alg.EDDSA})
"""What an owner's key may sign with."""


class Strict(BaseModel):
    """Base of all models here: strict types, frozen, no unknown fields."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Digest(Strict):
    """A hash value with its COSE algorithm: -16 SHA-256 (32 bytes) or -44 SHA-512 (64 bytes)."""

    alg: Literal[-16, -44]
    value: bytes

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.value) != _DIGEST_SIZE[self.alg]:
            raise ValueError(f"{len(self.value)} bytes do not fit hash algorithm {self.alg}")
        return self

    def to_cbor(self) -> list[int | bytes]:
        """``[alg, value]``, as it stands in every message."""
        return [self.alg, self.value]

    def __str__(self) -> str:
        name = "sha256" if self.alg == SHA_256 else "sha512"
        return f"{name}:{self.value.hex()}"


def _digest(value: object) -> object:
    if isinstance(value, Digest):
        return value
    if isinstance(value, list) and len(value) == 2:
        return Digest(alg=value[0], value=value[1])
    raise ValueError("a digest is [algorithm, bytes]")


DigestField = Annotated[Digest, BeforeValidator(_digest), PlainSerializer(Digest.to_cbor)]
Bytes16 = Annotated[bytes, Field(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Field(min_length=32, max_length=32)]
Ueid = Annotated[bytes, Field(min_length=7, max_length=33)]
Uint = Annotated[int, Field(ge=0, le=2**64 - 1)]
Uint32 = Annotated[int, Field(ge=0, le=2**32 - 1)]

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Statement(Generic[M]):
    """A statement whose shape is right. `content` is to be believed only after `check_signature`."""

    content: M
    kid: bytes
    message: cose.Sign1


def parse(data: bytes, content_type: str, *, limit: int, code: Code) -> tuple[cose.Sign1, bytes, dict[int, Any]]:
    """Read envelope, headers and the payload's labels.

    Args:
        data: the COSE_Sign1 as received.
        content_type: demanded content type.
        limit: most bytes accepted.
        code: reason for a payload that is not a map with integer labels, or a missing kid.

    Returns:
        (message, kid, labels).

    Raises:
        Reject: the shape is wrong.
    """
    message = cose.parse(data, content_type=content_type, algs=SIGNING_ALGS, limit=limit)
    if message.kid is None:
        raise Reject(code, "the protected header names no key (kid)")
    labels = strict_loads(message.payload, limit)
    if not isinstance(labels, dict) or not all(isinstance(label, int) for label in labels):
        raise Reject(code, "the payload is not a map with integer labels")
    return message, message.kid, labels  # type: ignore[return-value]


def build(model: type[M], names: Mapping[int, str], labels: Mapping[int, Any], code: Code) -> M:
    """Make the model from labelled values; unknown labels and wrong types are refused.

    Raises:
        Reject: `code`, naming the first field at fault.
    """
    if unknown := sorted(labels.keys() - names.keys()):
        raise Reject(code, f"unknown label {unknown[0]}")
    try:
        return model.model_validate({names[label]: value for label, value in labels.items()})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "statement"
        raise Reject(code, f"{field}: {first['msg']}") from error


def write(content: BaseModel, names: Mapping[int, str], content_type: str, key: PrivateKey) -> bytes:
    """Sign a model as a statement; fields that are None are left out."""
    values = content.model_dump(exclude_none=True)
    payload = dumps({label: values[name] for label, name in names.items() if name in values})
    return cose.sign(payload, key, content_type=content_type, kid=key_id(key.public_key()))


def check_signature(statement: Statement[M], keys: Mapping[bytes, PublicKey]) -> M:
    """Check that one of the accepted keys made the statement, and return its content.

    Args:
        statement: of the right shape.
        keys: accepted public keys by key id.

    Raises:
        Reject: ``statement.key`` for a key that is not accepted, ``cose.keyalg`` or ``sig.*``.
    """
    key = keys.get(statement.kid)
    if key is None:
        raise Reject(Code.STATEMENT_KEY, f"signed by key {statement.kid.hex()}, which is not accepted here")
    cose.verify(statement.message, key)
    return statement.content


def by_key_id(*keys: PublicKey) -> dict[bytes, PublicKey]:
    """The mapping that `check_signature` wants."""
    return {key_id(key): key for key in keys}
