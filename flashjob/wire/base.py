# SPDX-License-Identifier: Apache-2.0
"""The base of every model that crosses a process: strict, frozen, camelCase on the wire."""

import base64
import json
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel


class WireModel(BaseModel):
    """Strict and frozen; unknown fields are refused; Python names are snake_case, JSON names camelCase."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_enum_values=False,
    )

    @classmethod
    def parse(cls, obj: Any) -> Self:
        """Validate a JSON-like object (dict) by JSON's rules, where an enum or bytes arrives as a string.

        Raises:
            pydantic.ValidationError: with the path of each wrong field.
        """
        return cls.model_validate_json(json.dumps(obj))

    def dump(self) -> dict[str, Any]:
        """The JSON-like object: camelCase names, absent values left out."""
        result: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return result


def _b64url_decode(value: object) -> object:
    if not isinstance(value, str):
        return value
    raw = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    if b64url(raw) != value:
        raise ValueError("not canonical base64url without padding")
    return raw


def b64url(raw: bytes) -> str:
    """Base64url without padding (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _hex_checked(value: str) -> str:
    bytes.fromhex(value)
    return value


Blob = Annotated[bytes, BeforeValidator(_b64url_decode), PlainSerializer(b64url, return_type=str, when_used="json")]
"""Bytes, as base64url without padding in JSON."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
"""An OCI digest."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
"""A SHA-256, lower-case hex."""

Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", max_length=256), AfterValidator(_hex_checked)]
"""Lower-case hex of whole bytes."""

DeviceId = Annotated[str, Field(pattern=r"^[0-9a-f]{8,66}$", max_length=66)]
"""A device's identity: lower-case hex of its UEID (01 || SHA-256 of the UDS public key), or an owner-given id."""

GrantId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", max_length=32)]
"""16 random bytes in hex, drawn at an attempt's first permit; the boot id of the installation it leads to."""

ReasonCode = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{1,63}$", max_length=64)]
"""A reason as conditions carry it; the known ones are in reasons.Reason."""
