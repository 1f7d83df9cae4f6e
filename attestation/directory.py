# SPDX-License-Identifier: Apache-2.0
"""Trust kept in a directory, for use without a cluster. Implements the Protocols of ``anchors``.

| path | holds |
|---|---|
| ``devices/<id>.json`` | one device: ``spec`` as in the Device kind, ``status`` with floors, last measurement, standing |
| ``anchors/<anchor id>`` | the id of the device whose key has this DICE id; one file per form of the id |
| ``pending/<id>.json`` | a device seen for the first time, which waits for a named person's approval |
| ``policies/<name>.yaml`` | an AttestationPolicy, or its spec alone |
| ``signers/<name>.pub`` | PEM public keys that may sign artifacts |
| ``release/<name>.pub`` | PEM public keys that may sign release statements |
| ``grant.key`` | PEM private key that signs grants |
| ``evidence.key`` | PEM private key that signs evidence records; ``evidence.pub`` is its public half |

Rules: the directory and its private keys belong to the user alone (0700, 0600); a file that cannot be read or understood
rejects, it is never skipped; ``spec`` fields that this package does not judge by are kept as they are; files are
replaced atomically, one writer at a time; floors only rise; looking up a device reads two files at most, however many
there are; the device's own file decides, what stands under ``anchors`` only says where to look.
"""

import contextlib
import fcntl
import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from attestation import clones, files, keys, plain_yaml, standing
from attestation.anchors import DeviceAnchor, Floors
from attestation.device_file import (
    NAME,
    DeviceFile,
    base64url,
    first_error,
    history_json,
    sightings_json,
)
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey, PublicKey
from attestation.policy import AttestationPolicySpec, Measurement, MeasurementRef
from attestation.verdict import Verdict

__all__ = ["TrustDirectory", "base64url", "parse_policy", "read_policy"]

_POLICY_NESTING: Final = 16
_FOLDERS: Final = ("devices", "anchors", "pending", "policies", "signers", "release")

_T = TypeVar("_T")


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
            for folder in _FOLDERS:
                (root / folder).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Reject(Code.STORE_UNAVAILABLE, f"trust directory {root}: {error.strerror}") from error
        return cls(root)

    def by_ueid(self, ueid: bytes) -> DeviceAnchor | None:
        """See ``AnchorStore``. A device without a trust anchor cannot attest and is not found."""
        found = self._found(ueid)
        return found[0].anchor if found else None

    def by_anchor_id(self, anchor_id: bytes) -> DeviceAnchor | None:
        """See ``AnchorStore``. Finds both forms of a P-256 or P-384 key's id."""
        if not (self.root / "anchors").is_dir():
            self.index_again()
        path = self._anchor_path(anchor_id)
        if not path.exists():
            return None
        content = files.read(path).decode("ascii", "replace").strip()
        if not re.fullmatch("([0-9a-f]{2}){4,33}", content):
            raise Reject(Code.STORE_INVALID, f"anchors/{path.name} does not hold a device id")
        anchor = self.by_ueid(bytes.fromhex(content))
        if anchor is not None and anchor_id not in anchor.anchor_ids:
            raise Reject(Code.STORE_INVALID, f"anchors/{path.name} names device {content}, whose key has another id")
        return anchor

    def file(self, ueid: bytes) -> DeviceFile | None:
        """Everything about a device that this package judges by, in one read; None if it is not enrolled. Raises Reject."""
        found = self._found(ueid)
        return found[0] if found else None

    def device_path(self, ueid: bytes) -> Path:
        """Where the device with this id is kept, or would be."""
        return self.root / "devices" / self.device_file(ueid)

    @staticmethod
    def device_file(ueid: bytes) -> str:
        """The name of that file."""
        return f"{ueid.hex()}.json"

    def policy_path(self, name: str) -> Path:
        """Where the policy of this name is kept, or would be. Raises Reject ``policy.invalid``."""
        if not re.fullmatch(NAME, name):
            raise Reject(Code.POLICY_INVALID, f"{name!r:.80} is no name of a policy")
        return self.root / "policies" / f"{name}.yaml"

    def index_again(self) -> int:
        """Write ``anchors`` anew from the devices' own files, as after files were copied in by hand; their number.

        Raises:
            Reject: a device's file is not usable; ``anchors`` stays as it was.
        """
        anchors = [anchor for ueid in self.ids() if (anchor := self.by_ueid(ueid)) is not None]
        with self._writing():
            try:
                (self.root / "anchors").mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise Reject(Code.STORE_UNAVAILABLE, f"{self.root}/anchors: {error.strerror}") from error
            for anchor in anchors:
                self._index(anchor)
        return len(anchors)

    def ids(self) -> list[bytes]:
        """Every enrolled device, by id."""
        names = sorted(path.stem for path in (self.root / "devices").glob("*.json"))
        wrong = [name for name in names if not re.fullmatch("([0-9a-f]{2}){4,33}", name)]
        if wrong:
            raise Reject(Code.STORE_INVALID, f"devices/{wrong[0]}.json is not named by a device id")
        return [bytes.fromhex(name) for name in names]

    def policy(self, name: str) -> AttestationPolicySpec | None:
        """See ``PolicyStore``."""
        path = self.policy_path(name)
        return read_policy(path) if path.exists() else None

    def floors(self, ueid: bytes) -> Floors:
        """See ``FloorStore``."""
        found = self._found(ueid)
        return found[0].floors if found else Floors()

    def confirmed(self, ueid: bytes) -> Sequence[Measurement]:
        """See ``FloorStore``."""
        found = self._found(ueid)
        return tuple(found[0].confirmed) if found else ()

    def confirm(self, ueid: bytes, floors: Floors, measurements: Sequence[Measurement]) -> None:
        """See ``FloorStore``."""
        with self._writing():
            file, content = self._enrolled(ueid)
            raised = file.floors.raised(floors)
            status = content.get("status") or {}
            refs = [MeasurementRef(alg=value.alg, value=value.value.hex()) for value in measurements]
            self._write(
                ueid,
                content,
                floors={
                    **(status.get("floors") or {}),
                    "securityVersion": raised.security_version,
                    "sequence": raised.sequence,
                    "bootCount": raised.boot_count,
                },
                firmware={
                    **(status.get("firmware") or {}),
                    "measurements": [ref.model_dump(mode="json", by_alias=True) for ref in refs],
                },
            )

    def history(self, ueid: bytes) -> tuple[standing.Change, ...]:
        """Every change of a device's standing, oldest first. Raises Reject."""
        return self._enrolled(ueid)[0].history

    def change_standing(self, ueid: bytes, verb: standing.Verb, *, by: str, reason: str, at: int) -> standing.Standing:
        """Suspend, quarantine, release or revoke a device, by the rules of ``standing``; a release also forgets what boots
        were seen, since the alarm was about them.

        Raises:
            Reject: ``standing``, or the store cannot be used.
        """
        with self._writing():
            file, content = self._enrolled(ueid)
            history = standing.changed(file.history, verb, by=by, reason=reason, at=at)
            forget: dict[str, Any] = {"sightings": []} if verb is standing.Verb.RELEASE else {}
            self._write(ueid, content, standing=history_json(history), **forget)
        return standing.current(history)

    def observe(self, verdict: Verdict, ueid: bytes, *, asked_at: int, seen_at: int, by: str) -> clones.Finding:
        """Remember a boot; an alarm of ``clones`` suspends the device, in the name of the program `by`.

        Args:
            verdict, asked_at, seen_at: as ``clones.observe`` takes them.
            ueid: the device.
            by: whose decision a suspension is.

        Raises:
            Reject: the store cannot be used: nothing was remembered.
        """
        with self._writing():
            file, content = self._enrolled(ueid)
            finding = clones.observe(
                file.sightings,
                verdict,
                asked_at=asked_at,
                seen_at=seen_at,
                boot_count_floor=file.floors.boot_count,
            )
            changes: dict[str, Any] = {}
            if finding.sightings != file.sightings:
                changes["sightings"] = sightings_json(finding.sightings)
            if finding.alarm is not None and standing.current(file.history) in (
                standing.Standing.ACTIVE,
                standing.Standing.QUARANTINED,
            ):
                reason = f"{finding.alarm}: {finding.message}"[:512]
                history = standing.changed(file.history, standing.Verb.SUSPEND, by=by, reason=reason, at=seen_at)
                changes["standing"] = history_json(history)
            if changes:
                self._write(ueid, content, **changes)
        return finding

    def device(self, ueid: bytes) -> Mapping[str, Any] | None:
        """The whole content of a device's file, for the parts that this package does not judge by; None if absent."""
        found = self._found(ueid)
        return found[1] if found else None

    def enroll(self, spec: Mapping[str, Any]) -> None:
        """Write a new device; an enrolled one keeps its anchor and root of trust for ever.

        Args:
            spec: as in the Device kind (JSON form).

        Raises:
            Reject: the spec is not valid, or contradicts what is enrolled.
        """
        content: dict[str, Any] = {"spec": dict(spec), "status": {}}
        file = DeviceFile.of(content, "the device's spec")
        ueid, anchor = bytes.fromhex(file.spec.id), file.anchor
        with self._writing():
            found = self._found(ueid)
            if found is not None:
                for name in ("trust_anchor", "root_of_trust"):
                    if getattr(found[0].spec, name) != getattr(file.spec, name):
                        raise Reject(
                            Code.STORE_INVALID, f"{ueid.hex()}.json: {to_camel(name)} never changes after enrolment"
                        )
                content = {**found[1], "spec": dict(spec)}
            if anchor is not None and (self.root / "anchors").is_dir():
                self._index(anchor)  # first: an index entry without a device finds nothing
            files.replace(self.device_path(ueid), files.to_json(content))

    def pending(self, name: str) -> bytes | None:
        """What is kept of the device with this id (hex) that waits for approval; None if there is none."""
        path = self.root / "pending" / f"{_hex_name(name)}.json"
        return files.read(path) if path.exists() else None

    def pending_ids(self) -> list[str]:
        """Every device that waits for approval."""
        return sorted(path.stem for path in (self.root / "pending").glob("*.json"))

    def write_pending(self, name: str, content: bytes | None) -> None:
        """Keep or, with None, forget a device that waits for approval. Raises Reject."""
        path = self.root / "pending" / f"{_hex_name(name)}.json"
        with self._writing():
            try:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                if content is None:
                    path.unlink(missing_ok=True)
                    return
            except OSError as error:
                raise Reject(Code.STORE_UNAVAILABLE, f"{path}: {error.strerror}") from error
            files.replace(path, content)

    @contextlib.contextmanager
    def locked(self, ueid: bytes) -> Iterator[None]:
        """Hold the device's file for one writer; a second one is refused, not queued.

        Raises:
            Reject: ``store.unavailable``: the device is not enrolled, or another process works with it.
        """
        path = self.device_path(ueid)
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
        return {path.stem: files.read(path).decode("ascii", "replace") for path in self._keys("signers")}

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
        return self._private_key("grant.key")

    def write_grant_key(self, key: PrivateKey) -> None:
        """Store the key that signs grants, 0600. An existing one is never replaced.

        Raises:
            Reject: there is one already.
        """
        path = self.root / "grant.key"
        if path.exists():
            raise Reject(Code.STORE_INVALID, f"{path} exists: devices trust it, it is not replaced")
        files.replace(path, keys.private_to_pem(key))

    def evidence_key(self) -> PrivateKey:
        """The key that signs evidence records; made where there is none, with its public half beside it.

        Raises:
            Reject: it cannot be written, is readable by others, or is not a private key.
        """
        with self._writing():
            if not (self.root / "evidence.key").exists():
                key = ec.generate_private_key(ec.SECP256R1())
                files.replace(self.root / "evidence.pub", keys.to_pem(key.public_key()).encode())
                files.replace(self.root / "evidence.key", keys.private_to_pem(key))
        return self._private_key("evidence.key")

    def _private_key(self, name: str) -> PrivateKey:
        path = self.root / name
        content = files.read(path)
        if path.stat().st_mode & 0o077:
            raise Reject(Code.STORE_INVALID, f"{path.name} must be yours alone: chmod 600 {path}")
        return _named(path, lambda _: keys.private_from_pem(content))

    def _keys(self, folder: str) -> list[Path]:
        return sorted((self.root / folder).glob("*.pub"))

    def _anchor_path(self, anchor_id: bytes) -> Path:
        return self.root / "anchors" / anchor_id.hex()

    def _index(self, anchor: DeviceAnchor) -> None:
        for anchor_id in anchor.anchor_ids:
            files.replace(self._anchor_path(anchor_id), anchor.ueid.hex().encode() + b"\n")

    def _found(self, ueid: bytes) -> tuple[DeviceFile, dict[str, Any]] | None:
        path = self.device_path(ueid)
        if not path.exists():
            return None
        file, content = DeviceFile.read(path)
        if file.spec.id != path.stem:
            raise Reject(Code.STORE_INVALID, f"{path.name} is about device {file.spec.id}")
        return file, content

    def _enrolled(self, ueid: bytes) -> tuple[DeviceFile, dict[str, Any]]:
        found = self._found(ueid)
        if found is None:
            raise Reject(Code.STORE_UNAVAILABLE, f"device {ueid.hex()} is not enrolled in {self.root}")
        return found

    def _write(self, ueid: bytes, content: dict[str, Any], **status: Any) -> None:
        merged = {**content, "status": {**(content.get("status") or {}), **status}}
        files.replace(self.device_path(ueid), files.to_json(merged))

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return files.one_writer(self.root / ".lock")


def read_policy(path: Path) -> AttestationPolicySpec:
    """Read a policy from a YAML file: a whole AttestationPolicy, or its spec alone.

    Raises:
        Reject: ``policy.invalid``, with the path of the first wrong field; ``store.unavailable``.
    """
    return parse_policy(files.read(path), path.name)


def parse_policy(data: bytes, name: str) -> AttestationPolicySpec:
    """Read a policy from YAML (so JSON too) by the rules of ``plain_yaml``; `name` says in messages where it is from.

    Raises:
        Reject: ``policy.invalid``, with the path of the first wrong field.
    """
    try:
        content = plain_yaml.load(data.decode("utf-8"), nesting=_POLICY_NESTING, line_breaks=True)
    except ValueError as error:
        raise Reject(Code.POLICY_INVALID, f"{name} is not plain YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise Reject(Code.POLICY_INVALID, f"{name} is empty or not a mapping: no policy, no verdict")
    try:
        if "kind" in content:
            return _PolicyObject.model_validate_json(json.dumps(content)).spec
        return AttestationPolicySpec.model_validate_json(json.dumps(content))
    except (ValidationError, TypeError) as error:
        raise Reject(Code.POLICY_INVALID, f"{name}: {first_error(error)}") from error


def _hex_name(name: str) -> str:
    """A device id that may become part of a path."""
    if not re.fullmatch("([0-9a-f]{2}){4,33}", name):
        raise Reject(Code.STORE_INVALID, f"{name!r:.80} is not a device id in lower-case hex")
    return name


def _named(path: Path, read: Callable[[bytes], _T]) -> _T:
    try:
        return read(files.read(path))
    except Reject as reject:
        raise Reject(reject.code, f"{path.name}: {reject.message}") from reject
