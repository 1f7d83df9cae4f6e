# SPDX-License-Identifier: Apache-2.0
"""One device in a trust directory, as JSON: ``spec`` as in the Device kind, ``status`` with what was learned since.

Our own part of a file is strict; fields that belong to other parts of the product are carried along unread.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from attestation import files, keys
from attestation.anchors import DeviceAnchor, DeviceState, Floors
from attestation.clones import MOST_SIGHTINGS, Sighting
from attestation.errors import Code, Reject
from attestation.policy import Measurement, MeasurementRef, RootOfTrust
from attestation.standing import MOST_CHANGES, Change, Standing, current

NAME: Final = "[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
"""What a policy or device may be called: a Kubernetes name."""


class _File(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)


def base64url(raw: bytes) -> str:
    """Base64url without padding (RFC 4648 section 5): how ``trustAnchor.coseKey`` is written."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def from_base64url(text: str) -> bytes:
    """The one reading of base64url without padding. Raises ValueError for any other spelling."""
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if base64url(raw) != text:
        raise ValueError("not base64url without padding")
    return raw


def _unpadded(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("base64url text is expected")
    return from_base64url(value)


def _unhex(value: object) -> object:
    if not isinstance(value, str) or value != value.lower():
        raise ValueError("lower-case hex is expected")
    return bytes.fromhex(value)


Base64Url = Annotated[bytes, BeforeValidator(_unpadded)]
HexBytes = Annotated[bytes, BeforeValidator(_unhex)]


class _TrustAnchor(_File):
    cose_key: Base64Url


class _PolicyRef(_File):
    name: Annotated[str, Field(pattern=f"^{NAME}$")]


class DeviceSpec(_File):
    """What was decided at enrolment."""

    id: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){4,33}$")]
    trust_anchor: _TrustAnchor | None = None
    root_of_trust: RootOfTrust = RootOfTrust.SELF_REPORTED
    policy_ref: _PolicyRef
    suspended: bool = False
    oemid: Annotated[HexBytes, Field(min_length=3, max_length=16)] | None = None
    hwmodel: Annotated[str, Field(min_length=1, max_length=32)] | None = None


class _Floors(_File):
    security_version: Annotated[int, Field(ge=0)] = 0
    sequence: Annotated[int, Field(ge=0)] = 0
    boot_count: Annotated[int, Field(ge=0)] = 0


class _Firmware(_File):
    measurements: Annotated[tuple[MeasurementRef, ...], Field(max_length=8)] = ()


class _Change(_File):
    standing: Standing
    by: str
    reason: str
    at: int


class _Sighting(_File):
    boot_count: Annotated[int, Field(ge=0)]
    seed_sha256: Annotated[HexBytes, Field(min_length=32, max_length=32, alias="seedSha256")]
    seen_at: int


class _Status(_File):
    floors: _Floors = _Floors()
    firmware: _Firmware | None = None
    standing: Annotated[tuple[_Change, ...], Field(max_length=MOST_CHANGES)] = ()
    sightings: Annotated[tuple[_Sighting, ...], Field(max_length=MOST_SIGHTINGS)] = ()


class DeviceFile(_File):
    """A whole file."""

    spec: DeviceSpec
    status: _Status = _Status()

    @classmethod
    def read(cls, path: Path) -> tuple[Self, dict[str, Any]]:
        """The file as a model and as it stands. Raises Reject."""
        try:
            content = json.loads(files.read(path))
        except (ValueError, RecursionError) as error:
            raise Reject(Code.STORE_INVALID, f"{path.name} is not JSON") from error
        return cls.of(content, path.name), content

    @classmethod
    def of(cls, content: object, name: str) -> Self:
        """Check decoded JSON; `name` says in the message what it is. Raises Reject."""
        try:
            return cls.model_validate_json(files.to_json(content))
        except ValidationError as error:
            raise Reject(Code.STORE_INVALID, f"{name}: {first_error(error)}") from error

    @property
    def anchor(self) -> DeviceAnchor | None:
        """What the verifier must know of it; None for a device that cannot attest. Raises Reject."""
        spec = self.spec
        if spec.trust_anchor is None:
            return None
        state = current(self.history).state
        return DeviceAnchor(
            ueid=bytes.fromhex(spec.id),
            key=keys.from_cose(spec.trust_anchor.cose_key),
            tier=spec.root_of_trust,
            policy=spec.policy_ref.name,
            state=DeviceState.SUSPENDED if spec.suspended and state is DeviceState.ACTIVE else state,
            oemid=spec.oemid,
            hwmodel=spec.hwmodel.encode() if spec.hwmodel else None,
        )

    @property
    def floors(self) -> Floors:
        """What may only rise."""
        stored = self.status.floors
        return Floors(stored.security_version, stored.sequence, stored.boot_count)

    @property
    def confirmed(self) -> frozenset[Measurement]:
        """Its last confirmed measurement, in every known algorithm."""
        firmware = self.status.firmware
        return frozenset(ref.measurement for ref in firmware.measurements) if firmware else frozenset()

    @property
    def history(self) -> tuple[Change, ...]:
        """Every change of standing, oldest first."""
        return tuple(Change(one.standing, one.by, one.reason, one.at) for one in self.status.standing)

    @property
    def sightings(self) -> tuple[Sighting, ...]:
        """Boots that were seen, the lowest counter first."""
        return tuple(Sighting(one.boot_count, one.seed_sha256, one.seen_at) for one in self.status.sightings)


def first_error(error: Exception) -> str:
    """Where a model does not fit, and why, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def history_json(history: tuple[Change, ...]) -> list[dict[str, Any]]:
    """As it stands under ``status.standing``."""
    return [{"standing": one.standing.value, "by": one.by, "reason": one.reason, "at": one.at} for one in history]


def sightings_json(sightings: tuple[Sighting, ...]) -> list[Mapping[str, Any]]:
    """As they stand under ``status.sightings``."""
    return [
        {"bootCount": one.boot_count, "seedSha256": one.seed_sha256.hex(), "seenAt": one.seen_at} for one in sightings
    ]
