# SPDX-License-Identifier: Apache-2.0
"""Attestation results (EAR, draft-ietf-rats-ear; values of draft-ietf-rats-ar4si): a verdict that others can check.

An EAR is a CWT: an untagged COSE_Sign1 by the verifier's key, protected {alg, content type, kid}, over these claims.

| claim | key | type |
|---|---|---|
| exp, iat | 4, 6 | Unix seconds; at most 300 s apart |
| eat_nonce | 10 | bstr 8..64: the one that the device answered |
| ueid | 256 | bstr 7..33: the device |
| eat_profile | 265 | ``tag:ietf.org,2026:rats/ear#03`` |
| submods | 266 | {"device": appraisal} |
| status | 1000 | the worst status of the appraisals |
| verifier-id | 1004 | {0: developer, 1: build} |

Appraisal: 1000 status, 1001 trustworthiness vector {entry: value}, 1003 [appraisal policy id], 10 nonce again, and the
private claims -71020 reason code ("accepted" or why not), -71021 root of trust, -71022 [what was not proven].

Rules of minting (``mint``):

1. A rejected verdict is ``contraindicated``, whatever its entries; the entry that its code belongs to says why. Input
   that cannot be read or whose cryptography fails sets every entry to 99.
2. An accepted verdict is ``affirming`` only if its nonce was consumed, its application was judged, and the root of
   trust is at least the policy's minimum and not SelfReported; else at best ``warning``.
3. A status is never better than the worst entry. The appraisal policy id ends with the policy's hash.

Rules of checking (``check``):

1. The message is strict CBOR and COSE, by an accepted verifier key (``ear.verifier``), ES256 or EdDSA.
2. Exactly the claims above, in their types (``ear.structure``), under our profile (``ear.profile``).
3. Issued at most 5 s in the future, not expired, not longer-lived than 300 s (``ear.time``).
4. The nonce is the expected one, inside and outside (``ear.nonce``).
5. No status is better than the worst entry, or than its reason and tier allow; the overall status is the appraisal's
   (``ear.status``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from attestation import cose, keys
from attestation.cbor import Value, Writable, dumps, strict_loads
from attestation.errors import Code, Reject
from attestation.keys import Alg, PrivateKey, PublicKey
from attestation.policy import RootOfTrust
from attestation.verdict import SINGLE_USE, Verdict

PROFILE: Final = "tag:ietf.org,2026:rats/ear#03"
CONTENT_TYPE: Final = "application/eat+cwt"
LIMIT: Final = 2048
MAX_TTL_SECONDS: Final = 300
SKEW_SECONDS: Final = 5
SUBMODULE: Final = "device"
ACCEPTED: Final = "accepted"

EXP, IAT, NONCE, UEID, EAT_PROFILE, SUBMODS = 4, 6, 10, 256, 265, 266
STATUS, VECTOR, POLICY_IDS, VERIFIER_ID = 1000, 1001, 1003, 1004
REASON, ROOT_OF_TRUST, UNPROVEN = -71020, -71021, -71022

_CLAIMS: Final = frozenset({EXP, IAT, NONCE, UEID, EAT_PROFILE, SUBMODS, STATUS, VERIFIER_ID})
_APPRAISAL: Final = frozenset({STATUS, VECTOR, POLICY_IDS, NONCE, REASON, ROOT_OF_TRUST, UNPROVEN})
_ALGS: Final = frozenset({Alg.ES256, Alg.EDDSA})
_POLICY_ID: Final = re.compile(r"[^\s#]{1,320}#sha256:([0-9a-f]{64})")


class Status(IntEnum):
    """Trustworthiness tiers (AR4SI section 3.2); a higher number is worse."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96


class Entry(IntEnum):
    """Entries of the trustworthiness vector (AR4SI section 2.3)."""

    INSTANCE_IDENTITY = 0
    CONFIGURATION = 1
    EXECUTABLES = 2
    FILE_SYSTEM = 3
    HARDWARE = 4
    RUNTIME_OPAQUE = 5
    STORAGE_OPAQUE = 6
    SOURCED_DATA = 7


_CRYPTO_FAILED: Final = 99
_MOST_UNPROVEN: Final = 8
_GOOD: Final = {Entry.INSTANCE_IDENTITY: 2, Entry.CONFIGURATION: 2, Entry.EXECUTABLES: 3, Entry.HARDWARE: 2}
_BAD: Final[Mapping[Code, tuple[Entry, int]]] = {
    Code.DEVICE_UNKNOWN: (Entry.INSTANCE_IDENTITY, 97),
    Code.ANCHOR_ID: (Entry.INSTANCE_IDENTITY, 97),
    Code.DEVICE_SUSPENDED: (Entry.INSTANCE_IDENTITY, 96),
    Code.DEVICE_REVOKED: (Entry.INSTANCE_IDENTITY, 96),
    Code.CHAIN_DENIED: (Entry.INSTANCE_IDENTITY, 96),
    Code.EAT_UEID: (Entry.INSTANCE_IDENTITY, 96),
    Code.CLONE_BOOTCOUNT: (Entry.INSTANCE_IDENTITY, 96),
    Code.CLONE_SEED: (Entry.INSTANCE_IDENTITY, 96),
    Code.CLONE_IDENTITY: (Entry.INSTANCE_IDENTITY, 96),
    Code.REF_CODE: (Entry.EXECUTABLES, 33),
    Code.REF_LAYERS: (Entry.EXECUTABLES, 33),
    Code.BOOT_ID: (Entry.EXECUTABLES, 33),
    Code.EAT_NAME: (Entry.EXECUTABLES, 33),
    Code.REF_DENIED: (Entry.EXECUTABLES, 96),
    Code.REF_DATA: (Entry.FILE_SYSTEM, 96),
    Code.REF_AUTHORITY: (Entry.HARDWARE, 97),
    Code.EAT_HARDWARE: (Entry.HARDWARE, 97),
    Code.DICE_MODE: (Entry.CONFIGURATION, 96),
    Code.REF_EFUSES: (Entry.CONFIGURATION, 96),
    Code.EAT_DBGSTAT: (Entry.CONFIGURATION, 96),
    Code.REF_PARTITIONS: (Entry.CONFIGURATION, 96),
    Code.ROLLBACK: (Entry.CONFIGURATION, 96),
    Code.SLOT_STATE: (Entry.CONFIGURATION, 96),
}
_UNREADABLE: Final = frozenset(
    {"size", "cbor", "cose", "sig", "key", "evidence", "nonce", "replay", "chain", "dice", "leaf", "eat"}
)
"""Families of codes that mean that decoding, cryptography or freshness failed, where ``_BAD`` does not say better."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Who appraised.

    Args:
        developer: who made the verifier, 1 to 64 characters.
        build: which build of it, 1 to 128 characters.
    """

    developer: str
    build: str

    def __post_init__(self) -> None:
        if not _is_text(self.developer, 64) or not _is_text(self.build, 128):
            raise ValueError("developer and build are printable text of 1 to 64 and 1 to 128 characters")


@dataclass(frozen=True, slots=True)
class Ear:
    """A checked attestation result."""

    ueid: bytes
    nonce: bytes
    status: Status
    vector: Mapping[Entry, int]
    reason: str
    """``accepted``, or the code of the rule that was broken."""
    root_of_trust: RootOfTrust | None
    unproven: tuple[str, ...]
    policy_id: str
    verifier: Verifier
    issued_at: int
    """Unix seconds."""
    expires_at: int
    """Unix seconds."""

    @property
    def policy_hash(self) -> bytes | None:
        """Hash of the policy that decided; None where there was none."""
        found = _POLICY_ID.fullmatch(self.policy_id)
        return bytes.fromhex(found[1]) if found and found[1] != "0" * 64 else None


def vector_of(verdict: Verdict) -> dict[Entry, int]:
    """The trustworthiness vector of a verdict. Entries about which nothing is known are left out."""
    code = verdict.code
    if code is None:
        judged = verdict.acceptance is not None
        return {entry: value for entry, value in _GOOD.items() if judged or entry is not Entry.EXECUTABLES}
    if code in _BAD:
        entry, value = _BAD[code]
        return {entry: value}
    if code.value.split(".")[0] in _UNREADABLE:
        return dict.fromkeys(Entry, _CRYPTO_FAILED)
    return {}


def status_of(verdict: Verdict) -> Status:
    """The status of a verdict (rules 1 to 3 of minting)."""
    if not verdict.accepted:
        return Status.CONTRAINDICATED
    consumed = any(step.rule == SINGLE_USE and step.held for step in verdict.trail)
    strong = verdict.proven_at_tier and verdict.tier is not RootOfTrust.SELF_REPORTED
    best = Status.AFFIRMING if consumed and strong and verdict.acceptance is not None else Status.WARNING
    return max(best, _worst(vector_of(verdict)))


def mint(
    verdict: Verdict,
    key: PrivateKey,
    *,
    ueid: bytes,
    nonce: bytes,
    policy_name: str,
    verifier: Verifier,
    now: int,
    ttl: int = MAX_TTL_SECONDS,
) -> bytes:
    """Sign the result of a verdict.

    Args:
        verdict: of ``verifier.verify_once``.
        key: the verifier's key, ES256 or EdDSA.
        ueid: the device that was asked.
        nonce: the nonce that it was asked with.
        policy_name: name of the policy, as ``namespace/name@generation``; no white space and no "#".
        verifier: who appraised.
        now: Unix time in seconds.
        ttl: lifetime in seconds, 1 to 300.

    Raises:
        ValueError: an argument does not fit: the verdict answers another nonce or is about another device, the name,
            the lifetime or the key.
    """
    if verdict.nonce not in (None, nonce):
        raise ValueError("the verdict answers another nonce than the result is to echo")
    if verdict.claims is not None and verdict.accepted and verdict.claims.ueid != ueid:
        raise ValueError("the verdict is about another device")
    if not 0 < ttl <= MAX_TTL_SECONDS or keys.alg_of(key) not in _ALGS:
        raise ValueError(f"a result lives 1 to {MAX_TTL_SECONDS} s and is signed with ES256 or EdDSA")
    policy_id = f"{policy_name}#sha256:{(verdict.policy_hash or bytes(32)).hex()}"
    if not _POLICY_ID.fullmatch(policy_id):
        raise ValueError(f"policy name {policy_name!r} is empty, too long, or holds white space or '#'")
    status = int(status_of(verdict))
    appraisal: dict[int, Writable] = {
        NONCE: nonce,
        STATUS: status,
        VECTOR: {int(entry): value for entry, value in vector_of(verdict).items()},
        POLICY_IDS: [policy_id],
        REASON: verdict.code.value if verdict.code else ACCEPTED,
        ROOT_OF_TRUST: verdict.tier.value if verdict.tier else "",
        UNPROVEN: _shortened(verdict.unproven),
    }
    claims: dict[int, Writable] = {
        EXP: now + ttl,
        IAT: now,
        NONCE: nonce,
        UEID: ueid,
        EAT_PROFILE: PROFILE,
        SUBMODS: {SUBMODULE: appraisal},
        STATUS: status,
        VERIFIER_ID: {0: verifier.developer, 1: verifier.build},
    }
    return cose.sign(dumps(claims), key, content_type=CONTENT_TYPE, kid=keys.key_id(key.public_key()))


def check(data: bytes, accepted_keys: Mapping[bytes, PublicKey], *, nonce: bytes, now: int) -> Ear:
    """Check a result by the rules of this module. What it says is then the verifier's word; read ``status``.

    Args:
        data: the result as received.
        accepted_keys: public keys of accepted verifiers by ``keys.key_id``.
        nonce: the nonce that it must be about.
        now: Unix time in seconds.

    Raises:
        Reject: ``size``, ``cbor.*``, ``cose.*``, ``sig.*`` or ``ear.*``.
    """
    message = cose.parse(data, content_type=CONTENT_TYPE, algs=_ALGS, limit=LIMIT)
    key = accepted_keys.get(message.kid or b"")
    if key is None:
        raise Reject(Code.EAR_VERIFIER, "the result names no accepted verifier key")
    cose.verify(message, key)
    claims = strict_loads(message.payload, LIMIT)
    if not isinstance(claims, dict):
        raise _structure("the payload is not a map")
    if claims.get(EAT_PROFILE) != PROFILE:
        raise Reject(Code.EAR_PROFILE, f"profile {claims.get(EAT_PROFILE)!r:.60}, expected {PROFILE}")
    if claims.keys() != _CLAIMS:
        raise _structure(f"claim {min(map(repr, claims.keys() ^ _CLAIMS)):.40} is missing or unknown")
    submods = claims[SUBMODS]
    appraisal = submods.get(SUBMODULE) if isinstance(submods, dict) and len(submods) == 1 else None
    if not isinstance(appraisal, dict) or appraisal.keys() != _APPRAISAL:
        raise _structure(f"submods are not exactly {{{SUBMODULE!r}: appraisal}} with all its claims")
    result = Ear(
        ueid=_bytes(claims[UEID], 7, 33, "ueid"),
        nonce=_bytes(claims[NONCE], 8, 64, "nonce"),
        status=_status(claims[STATUS]),
        vector=_vector(appraisal[VECTOR]),
        reason=_text(appraisal[REASON], 64, "reason"),
        root_of_trust=_root_of_trust(appraisal[ROOT_OF_TRUST]),
        unproven=_unproven(appraisal[UNPROVEN]),
        policy_id=_policy_id(appraisal[POLICY_IDS]),
        verifier=_verifier(claims[VERIFIER_ID]),
        issued_at=_seconds(claims[IAT], "iat"),
        expires_at=_seconds(claims[EXP], "exp"),
    )
    if result.issued_at > now + SKEW_SECONDS or result.expires_at <= now:
        raise Reject(Code.EAR_TIME, f"issued at {result.issued_at}, good until {result.expires_at}, now is {now}")
    if not 0 < result.expires_at - result.issued_at <= MAX_TTL_SECONDS:
        raise Reject(Code.EAR_TIME, f"a result lives 1 to {MAX_TTL_SECONDS} s")
    if result.nonce != nonce or appraisal[NONCE] != nonce:
        raise Reject(Code.EAR_NONCE, "the result answers another nonce")
    _check_status(result, _status(appraisal[STATUS]))
    return result


def _check_status(result: Ear, inner: Status) -> None:
    if result.status is not inner:
        raise Reject(Code.EAR_STATUS, f"overall status {result.status.name}, the appraisal's is {inner.name}")
    accepted = result.reason == ACCEPTED
    best = max(Status.AFFIRMING if accepted else Status.CONTRAINDICATED, _worst(result.vector))
    if result.root_of_trust in (None, RootOfTrust.SELF_REPORTED) or Entry.EXECUTABLES not in result.vector:
        best = max(best, Status.WARNING)
    if result.status < best:
        raise Reject(Code.EAR_STATUS, f"status {result.status.name}, its contents allow {best.name} at best")


def _worst(vector: Mapping[Entry, int]) -> Status:
    worst = max(vector.values(), default=0)
    return max(status for status in Status if status <= worst)


def _shortened(unproven: tuple[str, ...]) -> list[str]:
    """What was not proven, so that it fits a result: the last of 8 says how many were left out."""
    kept = unproven if len(unproven) <= _MOST_UNPROVEN else unproven[: _MOST_UNPROVEN - 1]
    left_out = len(unproven) - len(kept)
    return [text[:160] for text in kept] + ([f"{left_out} more"] if left_out else [])


def _structure(message: str) -> Reject:
    return Reject(Code.EAR_STRUCTURE, message)


def _is_text(value: Value, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def _text(value: Value, most: int, name: str) -> str:
    if not isinstance(value, str) or not _is_text(value, most):
        raise _structure(f"{name} is not printable text of 1 to {most} characters")
    return value


def _bytes(value: Value, least: int, most: int, name: str) -> bytes:
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise _structure(f"{name} is not a byte string of {least} to {most} bytes")
    return value


def _seconds(value: Value, name: str) -> int:
    if type(value) is not int or not 0 < value < 2**40:
        raise _structure(f"{name} is not a time in Unix seconds")
    return value


def _status(value: Value) -> Status:
    if type(value) is not int or value not in list(Status):
        raise _structure(f"status {value!r:.20} is none of 0, 2, 32, 96")
    return Status(value)


def _vector(value: Value) -> Mapping[Entry, int]:
    if not isinstance(value, dict):
        raise _structure("the trustworthiness vector is not a map")
    vector: dict[Entry, int] = {}
    for entry, claim in value.items():
        if type(entry) is not int or entry not in list(Entry) or type(claim) is not int or not 0 <= claim <= 127:
            raise _structure("the trustworthiness vector is not {0..7: 0..127}")
        vector[Entry(entry)] = claim
    return MappingProxyType(vector)


def _root_of_trust(value: Value) -> RootOfTrust | None:
    if value == "":
        return None
    if not isinstance(value, str) or value not in list(RootOfTrust):
        raise _structure(f"root of trust {value!r:.40} is unknown")
    return RootOfTrust(value)


def _unproven(value: Value) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MOST_UNPROVEN:
        raise _structure(f"what is unproven is not an array of at most {_MOST_UNPROVEN}")
    return tuple(_text(item, 160, "what is unproven") for item in value)


def _policy_id(value: Value) -> str:
    policy_id = value[0] if isinstance(value, list) and len(value) == 1 else None
    if not isinstance(policy_id, str) or not _POLICY_ID.fullmatch(policy_id):
        raise _structure("the appraisal policy ids are not one name#sha256:hash")
    return policy_id


def _verifier(value: Value) -> Verifier:
    if not isinstance(value, dict) or value.keys() != {0, 1}:
        raise _structure("verifier-id is not {0: developer, 1: build}")
    return Verifier(_text(value[0], 64, "developer"), _text(value[1], 128, "build"))
