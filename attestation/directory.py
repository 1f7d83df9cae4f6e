# SPDX-License-Identifier: Apache-2.0
"""Trust kept in a directory, for use without a cluster. Implements the Protocols of ``anchors``.

| path | holds |
|---|---|
| ``devices/<id>.json`` | one device: ``spec`` as in the Device kind, ``status`` with floors and last measurement |
| ``policies/<name>.yaml`` | an AttestationPolicy, or its spec alone |
| ``signers/<name>.pub`` | PEM public keys that may sign artifacts |
| ``release/<name>.pub`` | PEM public keys that may sign release statements |
| ``grant.key`` | PEM private key that signs grants |

Rules: the directory and ``grant.key`` belong to the user alone (0700, 0600); a file that cannot be read or understood
rejects, it is never skipped; ``spec`` fields that this package does not judge by are kept as they are; files are
replaced atomically; floors only rise.
"""

import base64
import contextlib
import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from attestation import keys
from attestation.anchors import DeviceAnchor, DeviceState, Floors
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey, PublicKey
from attestation.policy import AttestationPolicySpec, Measurement, MeasurementRef, RootOfTrust

FILE_LIMIT: Final = 64 * 1024
_NAME: Final = "[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"

_T = TypeVar("_T")


class _File(BaseModel):
    """Our own part of a file is strict; what belongs to other parts of the product is carried along."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)


def _unpadded(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("base64url text is expected")
    raw = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    if base64url(raw) != value:
        raise ValueError("not base64url without padding")
    return raw


class _TrustAnchor(_File):
    cose_key: Annotated[bytes, BeforeValidator(_unpadded)]


class _PolicyRef(_File):
    name: Annotated[str, Field(pattern=f"^{_NAME}$")]


class _DeviceSpec(_File):
    id: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){4,33}$")]
    trust_anchor: _TrustAnchor | None = None
    root_of_trust: RootOfTrust = RootOfTrust.SELF_REPORTED
    policy_ref: _PolicyRef
    suspended: bool = False


class _Floors(_File):
    security_version: Annotated[int, Field(ge=0)] = 0
    sequence: Annotated[int, Field(ge=0)] = 0
    boot_count: Annotated[int, Field(ge=0)] = 0


class _Firmware(_File):
    measurements: Annotated[tuple[MeasurementRef, ...], Field(max_length=8)] = ()


class _DeviceStatus(_File):
    floors: _Floors = _Floors()
    firmware: _Firmware | None = None


class _DeviceFile(_File):
    spec: _DeviceSpec
    status: _DeviceStatus = _DeviceStatus()


class _PolicyObject(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
    kind: Literal["AttestationPolicy"]
    spec: AttestationPolicySpec


class TrustDirectory:
    """A trust directory. Reads from disk at every call: what a person changed counts at once.

    Args:
        root: the directory.

    Raises:
        Reject: ``store.unavailable`` if it is not there, ``store.invalid`` if others may enter it.
    """

    def __init__(self, root: Path) -> None:
        try:
            status = root.stat()
        except OSError as error:
            raise Reject(
                Code.STORE_UNAVAILABLE, f"trust directory {root}: {error.strerror}. Enroll a device first."
            ) from error
        if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
            raise Reject(Code.STORE_INVALID, f"trust directory {root} must be yours alone: chmod 700 {root}")
        self.root = root

    @classmethod
    def create(cls, root: Path) -> "TrustDirectory":
        """Make the directory with its folders where they are missing, and open it.

        Raises:
            Reject: it cannot be made, or others may enter it.
        """
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in ("devices", "policies", "signers", "release"):
                (root / folder).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Reject(Code.STORE_UNAVAILABLE, f"trust directory {root}: {error.strerror}") from error
        return cls(root)

    def by_ueid(self, ueid: bytes) -> DeviceAnchor | None:
        """See ``AnchorStore``. A device without a trust anchor cannot attest and is not found."""
        path = self._device_path(ueid)
        return self._anchor(path) if path.exists() else None

    def by_anchor_id(self, anchor_id: bytes) -> DeviceAnchor | None:
        """See ``AnchorStore``. Reads every device: a bench has few."""
        for path in sorted((self.root / "devices").glob("*.json")):
            anchor = self._anchor(path)
            if anchor is not None and anchor.anchor_id == anchor_id:
                return anchor
        return None

    def policy(self, name: str) -> AttestationPolicySpec | None:
        """See ``PolicyStore``."""
        if not re.fullmatch(_NAME, name):
            raise Reject(Code.POLICY_INVALID, f"{name!r:.80} is no name of a policy")
        path = self.root / "policies" / f"{name}.yaml"
        return read_policy(path) if path.exists() else None

    def floors(self, ueid: bytes) -> Floors:
        """See ``FloorStore``."""
        path = self._device_path(ueid)
        if not path.exists():
            return Floors()
        stored = _device(path)[0].status.floors
        return Floors(stored.security_version, stored.sequence, stored.boot_count)

    def confirmed(self, ueid: bytes) -> Sequence[Measurement]:
        """See ``FloorStore``."""
        path = self._device_path(ueid)
        firmware = _device(path)[0].status.firmware if path.exists() else None
        return tuple(ref.measurement for ref in firmware.measurements) if firmware else ()

    def confirm(self, ueid: bytes, floors: Floors, measurements: Sequence[Measurement]) -> None:
        """See ``FloorStore``."""
        path = self._device_path(ueid)
        content = _device(path)[1]
        raised = self.floors(ueid).raised(floors)
        status = dict(content.get("status") or {})
        status["floors"] = {
            **(status.get("floors") or {}),
            "securityVersion": raised.security_version,
            "sequence": raised.sequence,
            "bootCount": raised.boot_count,
        }
        refs = [MeasurementRef(alg=value.alg, value=value.value.hex()) for value in measurements]
        status["firmware"] = {
            **(status.get("firmware") or {}),
            "measurements": [ref.model_dump(mode="json", by_alias=True) for ref in refs],
        }
        _replace(path, _json({**content, "status": status}))

    def device(self, ueid: bytes) -> Mapping[str, Any] | None:
        """The whole content of a device's file, for the parts that this package does not judge by; None if absent."""
        path = self._device_path(ueid)
        return _device(path)[1] if path.exists() else None

    def enroll(self, spec: Mapping[str, Any]) -> None:
        """Write a new device; an enrolled one keeps its anchor and root of trust for ever.

        Args:
            spec: as in the Device kind (JSON form).

        Raises:
            Reject: the spec is not valid, or contradicts what is enrolled.
        """
        content: dict[str, Any] = {"spec": dict(spec), "status": {}}
        file = _validated(_DeviceFile, content, "the device's spec")
        path = self._device_path(bytes.fromhex(file.spec.id))
        if path.exists():
            known, content = _device(path)
            for name in ("trust_anchor", "root_of_trust"):
                if getattr(known.spec, name) != getattr(file.spec, name):
                    raise Reject(Code.STORE_INVALID, f"{path.name}: {to_camel(name)} never changes after enrolment")
            content = {**content, "spec": dict(spec)}
        _anchor_of(file.spec)
        _replace(path, _json(content))

    @contextlib.contextmanager
    def locked(self, ueid: bytes) -> Iterator[None]:
        """Hold the device's file for one writer; a second one is refused, not queued.

        Raises:
            Reject: ``store.unavailable``: the device is not enrolled, or another process works with it.
        """
        path = self._device_path(ueid)
        lock = path.with_suffix(".lock")
        if not path.exists():
            raise Reject(Code.STORE_UNAVAILABLE, f"device {ueid.hex()} is not enrolled in {self.root}")
        with lock.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Reject(Code.STORE_UNAVAILABLE, f"device {ueid.hex()} is in use by another process") from error
            yield

    def signers(self) -> dict[str, str]:
        """PEM public keys that may sign artifacts, by name. They may be of any kind: their user reads them."""
        return {path.stem: _read(path).decode("ascii", "replace") for path in self._keys("signers")}

    def release_keys(self) -> dict[str, PublicKey]:
        """Keys that may sign release statements, by name.

        Raises:
            Reject: a file is not a usable public key.
        """
        return {path.stem: _named(path, keys.from_pem) for path in self._keys("release")}

    def grant_key(self) -> PrivateKey:
        """The key that signs grants.

        Raises:
            Reject: it is missing, readable by others, or not a private key.
        """
        path = self.root / "grant.key"
        content = _read(path)
        if path.stat().st_mode & 0o077:
            raise Reject(Code.STORE_INVALID, f"{path.name} must be yours alone: chmod 600 {path}")
        return _named(path, lambda _: keys.private_from_pem(content))

    def write_grant_key(self, key: PrivateKey) -> None:
        """Store the key that signs grants, 0600. An existing one is never replaced.

        Raises:
            Reject: there is one already.
        """
        path = self.root / "grant.key"
        if path.exists():
            raise Reject(Code.STORE_INVALID, f"{path} exists: devices trust it, it is not replaced")
        _replace(path, keys.private_to_pem(key))

    def _keys(self, folder: str) -> list[Path]:
        return sorted((self.root / folder).glob("*.pub"))

    def _device_path(self, ueid: bytes) -> Path:
        return self.root / "devices" / f"{ueid.hex()}.json"

    def _anchor(self, path: Path) -> DeviceAnchor | None:
        spec = _device(path)[0].spec
        if spec.id != path.stem:
            raise Reject(Code.STORE_INVALID, f"{path.name} is about device {spec.id}")
        return _anchor_of(spec)


def read_policy(path: Path) -> AttestationPolicySpec:
    """Read a policy from YAML: a whole AttestationPolicy, or its spec alone.

    Raises:
        Reject: ``policy.invalid``, with the path of the first wrong field; ``store.unavailable``.
    """
    try:
        content = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        raise Reject(Code.POLICY_INVALID, f"{path.name} is not YAML") from error
    if not isinstance(content, dict) or not content:
        raise Reject(Code.POLICY_INVALID, f"{path.name} is empty or not a mapping: no policy, no verdict")
    try:
        if "kind" in content:
            return _PolicyObject.model_validate_json(_json(content)).spec
        return AttestationPolicySpec.model_validate_json(_json(content))
    except (ValidationError, TypeError) as error:
        raise Reject(Code.POLICY_INVALID, f"{path.name}: {_first(error)}") from error


def base64url(raw: bytes) -> str:
    """Base64url without padding (RFC 4648 section 5): how ``trustAnchor.coseKey`` is written."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _anchor_of(spec: _DeviceSpec) -> DeviceAnchor | None:
    if spec.trust_anchor is None:
        return None
    return DeviceAnchor(
        ueid=bytes.fromhex(spec.id),
        key=keys.from_cose(spec.trust_anchor.cose_key),
        tier=spec.root_of_trust,
        policy=spec.policy_ref.name,
        state=DeviceState.SUSPENDED if spec.suspended else DeviceState.ACTIVE,
    )


def _device(path: Path) -> tuple[_DeviceFile, dict[str, Any]]:
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise Reject(Code.STORE_INVALID, f"{path.name} is not JSON") from error
    return _validated(_DeviceFile, content, path.name), content


def _validated(model: type[_DeviceFile], content: object, name: str) -> _DeviceFile:
    try:
        return model.model_validate_json(_json(content))
    except ValidationError as error:
        raise Reject(Code.STORE_INVALID, f"{name}: {_first(error)}") from error


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _named(path: Path, read: Callable[[bytes], _T]) -> _T:
    try:
        return read(_read(path))
    except Reject as reject:
        raise Reject(reject.code, f"{path.name}: {reject.message}") from reject


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}") from error
    if len(content) > FILE_LIMIT:
        raise Reject(Code.STORE_INVALID, f"{path.name} is larger than {FILE_LIMIT} bytes")
    return content


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"


def _replace(path: Path, content: bytes) -> None:
    """Write beside, flush, rename: a crash leaves the old file or the new one."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        raise Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}") from error
