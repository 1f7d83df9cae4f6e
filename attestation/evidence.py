# SPDX-License-Identifier: Apache-2.0
"""Durable evidence: everything that one verdict rested on, signed, so that it can be judged again years later. Pure.

Rules (tests name them):

1. A record holds the evidence as received, the nonce, the time, the device as enrolled, the whole policy and all that the
   verifier was told besides; nothing that it decided by is only referred to.
2. It names the verdict and the build of the verifier. Its policy hash is that of its policy as it stands there, so that it
   holds under builds whose policies know more fields; its evidence hash is that of its evidence (``record.hash``).
3. It is written in one way: canonical JSON in a DSSE envelope. Any other spelling is refused (``record.structure``).
4. The nonce is the one that was answered: freshness is judged as of the record's time, not as of today.

What is not in it: keys of nonces, and anything about the network.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from attestation import dsse, keys
from attestation.anchors import DeviceAnchor, DeviceState, Floors
from attestation.device_file import Base64Url, HexBytes, base64url, first_error
from attestation.eat import SlotState
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey, PublicKey
from attestation.policy import AttestationPolicySpec, Measurement, RootOfTrust, policy_hash
from attestation.verdict import Context, ExactNonce, Verdict

PAYLOAD_TYPE: Final = "application/vnd.flashjob.evidence-record.v1+json"
_HASH = Annotated[HexBytes, Field(min_length=32, max_length=32)]
_MEASURED = Annotated[str, Field(pattern=r"^sha(256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128})$")]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class RecordedDevice(_Part):
    """The device as it was enrolled."""

    cose_key: Base64Url
    root_of_trust: RootOfTrust
    policy: str
    state: DeviceState
    oemid: int | str | None
    hwmodel: str | None


class RecordedContext(_Part):
    """What the verifier was told besides; see ``verdict.Context``."""

    security_version: int
    sequence: int
    boot_count: int
    last_confirmed: tuple[_MEASURED, ...]
    pinned: tuple[_MEASURED, ...]
    expected: tuple[_MEASURED, ...] | None
    any_application: bool
    boot_ids: tuple[str, ...] | None
    slot_states: tuple[str, ...] | None
    data_images: dict[str, tuple[_MEASURED, ...]] | None
    partition_table: _HASH | None = None
    """Absent in records of builds that knew no such demand."""


class RecordedVerdict(_Part):
    """What was decided then."""

    accepted: bool
    proven_at_tier: bool
    code: str | None
    message: str
    unproven: tuple[str, ...]


class Record(_Part):
    """One deciding attestation (rule 1)."""

    id: str
    at: int
    about: dict[str, str]
    evidence: Base64Url
    evidence_sha256: Annotated[_HASH, Field(alias="evidenceSha256")]
    nonce: HexBytes
    device: RecordedDevice
    policy: AttestationPolicySpec
    policy_hash: _HASH
    context: RecordedContext
    verdict: RecordedVerdict
    verifier: str

    def as_judged(self, policy: AttestationPolicySpec | None = None, *, policy_only: bool = False) -> Context:
        """The context of then, or the same under another policy.

        Args:
            policy: judges instead of the recorded one.
            policy_only: an application counts only if the policy itself names it, not because it was confirmed or
                pinned by a task then.

        Raises:
            Reject: ``record.structure``, the device or the context cannot be what a verifier was told.
        """
        told, device = self.context, self.device
        try:
            slots = None if told.slot_states is None else frozenset(SlotState[name] for name in told.slot_states)
            ids = None if told.boot_ids is None else frozenset(bytes.fromhex(one) for one in told.boot_ids)
            key = keys.from_cose(device.cose_key)
            return Context(
                device=DeviceAnchor(
                    ueid=bytes.fromhex(self.id),
                    key=key,
                    tier=device.root_of_trust,
                    policy=device.policy,
                    state=device.state,
                    oemid=bytes.fromhex(device.oemid) if isinstance(device.oemid, str) else device.oemid,
                    hwmodel=bytes.fromhex(device.hwmodel) if device.hwmodel is not None else None,
                ),
                policy=policy or self.policy,
                nonce=ExactNonce(self.nonce),
                now=self.at,
                floors=Floors(told.security_version, told.sequence, told.boot_count),
                last_confirmed=frozenset() if policy_only else _measurements(told.last_confirmed),
                pinned=frozenset() if policy_only else _measurements(told.pinned),
                expected=None if told.expected is None else _measurements(told.expected),
                any_application=told.any_application,
                boot_ids=ids,
                slot_states=slots,
                data_images=None
                if told.data_images is None
                else {label: _measurements(values) for label, values in told.data_images.items()},
                partition_table=told.partition_table,
            )
        except (KeyError, ValueError, Reject) as error:
            raise Reject(Code.RECORD_STRUCTURE, f"the record's context does not read: {error}") from error


def record(
    evidence: bytes, context: Context, verdict: Verdict, *, verifier: str, about: Mapping[str, str]
) -> bytes | None:
    """The payload of a record (rules 1 and 2), or None for a judgement that decided nothing: no device, no policy, evidence
    that answers no nonce of ours, or one that was used before (what it decided then is on record).

    Args:
        evidence: as received.
        context: what the verifier was told.
        verdict: what it decided.
        verifier: name and build of the program.
        about: what it was decided for (task, artifact), for people.
    """
    device, policy, nonce = context.device, context.policy, verdict.nonce
    if device is None or policy is None or nonce is None or verdict.code is Code.REPLAY:
        return None
    content = {
        "id": device.ueid.hex(),
        "at": context.now,
        "about": dict(about),
        "evidence": base64url(evidence),
        "evidenceSha256": hashlib.sha256(evidence).hexdigest(),
        "nonce": nonce.hex(),
        "device": {
            "coseKey": base64url(keys.encode_cose(device.key)),
            "rootOfTrust": device.tier.value,
            "policy": device.policy,
            "state": device.state.value,
            "oemid": device.oemid.hex() if isinstance(device.oemid, bytes) else device.oemid,
            "hwmodel": device.hwmodel.hex() if device.hwmodel is not None else None,
        },
        "policy": policy.model_dump(mode="json", by_alias=True),
        "policyHash": policy_hash(policy).hex(),
        "context": _told(context),
        "verdict": {
            "accepted": verdict.accepted,
            "provenAtTier": verdict.proven_at_tier,
            "code": verdict.code.value if verdict.code else None,
            "message": verdict.message,
            "unproven": list(verdict.unproven),
        },
        "verifier": verifier,
    }
    return _canonical(content)


def seal(payload: bytes, key: PrivateKey) -> bytes:
    """A record, signed."""
    return dsse.seal(PAYLOAD_TYPE, payload, key)


def read(envelope: bytes, accepted: Iterable[PublicKey]) -> Record:
    """Check signature, spelling and hashes of a record (rules 2 and 3).

    Args:
        envelope: as stored.
        accepted: keys that may have signed it.

    Raises:
        Reject: ``record.structure``, ``record.signature`` or ``record.hash``.
    """
    payload = dsse.open_sealed(envelope, PAYLOAD_TYPE, accepted)
    try:
        content = json.loads(payload)
        if _canonical(content) != payload:
            raise Reject(Code.RECORD_STRUCTURE, "the record is spelled in another way than ours")
        found = Record.model_validate_json(payload)
    except ValidationError as error:
        raise Reject(Code.RECORD_STRUCTURE, f"the record: {first_error(error)}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise Reject(Code.RECORD_STRUCTURE, "the record is not JSON") from error
    if hashlib.sha256(found.evidence).digest() != found.evidence_sha256:
        raise Reject(Code.RECORD_HASH, "the evidence is not the one that the record names")
    if hashlib.sha256(_canonical(content["policy"])).digest() != found.policy_hash:
        raise Reject(Code.RECORD_HASH, "the policy is not the one that the record names")
    return found


def _told(context: Context) -> dict[str, Any]:
    floors, expected, ids, slots = context.floors, context.expected, context.boot_ids, context.slot_states
    images, table = context.data_images, context.partition_table
    return {
        "securityVersion": floors.security_version,
        "sequence": floors.sequence,
        "bootCount": floors.boot_count,
        "lastConfirmed": _full(context.last_confirmed),
        "pinned": _full(context.pinned),
        "expected": None if expected is None else _full(expected),
        "anyApplication": context.any_application,
        "bootIds": None if ids is None else sorted(one.hex() for one in ids),
        "slotStates": None if slots is None else sorted(one.name for one in slots),
        "dataImages": None if images is None else {label: _full(values) for label, values in images.items()},
        "partitionTable": None if table is None else table.hex(),
    }


def _full(values: Iterable[Measurement]) -> list[str]:
    return sorted(value.full for value in values)


def _measurements(values: Iterable[str]) -> frozenset[Measurement]:
    return frozenset(Measurement.of_hash(bytes.fromhex(value.partition(":")[2])) for value in values)


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
