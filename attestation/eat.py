# SPDX-License-Identifier: Apache-2.0
"""The token (EAT, RFC 9711) and the envelope it travels in; profile ``tag:flashjob.dev,2026:eat-dice``.

Envelope: ``[1, anchor id bstr 20, [+ bstr certificate], bstr EAT]``, at most 4,096 bytes.

Rules of the token:

1. The payload is a strict CBOR map with integer keys.
2. ``eat_nonce`` (10) is one byte string; an array of nonces is refused.
3. ``eat_profile`` (265) is ours. The profile is closed: every claim below is required unless marked optional, and any
   other claim is refused, because what is signed must be understood.
4. Every claim has its type and length; booleans are not integers. Counters stay below 2^63 - 1: who keeps the highest seen,
   or sets one above it, keeps signed 64-bit integers.

| claim | key | type |
|---|---|---|
| eat_nonce | 10 | bstr 8..64 |
| ueid | 256 | bstr 7..33 |
| oemid | 258 | uint (PEN), bstr 3 or bstr 16 |
| hwmodel | 259 | bstr 1..32 |
| dbgstat | 263 | 0..4 |
| eat_profile | 265 | tstr |
| bootcount, bootseed | 267, 268 | uint, bstr 8..64 |
| swname | 270 | tstr 1..32 |
| swversion | 271 | [tstr, ?int] (RFC 9711 section 4.2.7) |
| cnf, optional | 8 | {1: COSE_Key} |
| slot state | -71010 | uint, the otadata state |
| eFuse secure version | -71011 | uint |
| data images | -71012 | {tstr label: [COSE alg, bstr]} |
| own addresses | -71013 | [* tstr], at most 8 |
| owner key ids | -71014 | [* bstr 8], at most 8 |
| stored fence | -71015 | uint |
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from attestation import cose, keys
from attestation.cbor import Value, strict_loads
from attestation.errors import Code, Reject
from attestation.keys import PublicKey
from attestation.policy import DebugStatus, Measurement

PROFILE: Final = "tag:flashjob.dev,2026:eat-dice"
EVIDENCE_LIMIT: Final = 4096
EVIDENCE_VERSION: Final = 1
EVIDENCE_MEDIA_TYPE: Final = "application/vnd.flashjob.evidence+cbor"

_UINT_END: Final = 2**63 - 1

CNF: Final = 8
NONCE: Final = 10
UEID: Final = 256
OEMID: Final = 258
HWMODEL: Final = 259
DBGSTAT: Final = 263
EAT_PROFILE: Final = 265
BOOTCOUNT: Final = 267
BOOTSEED: Final = 268
SWNAME: Final = 270
SWVERSION: Final = 271
SLOT_STATE: Final = -71010
EFUSE_SECURE_VERSION: Final = -71011
DATA_IMAGES: Final = -71012
ADDRESSES: Final = -71013
OWNER_KEYS: Final = -71014
FENCE: Final = -71015

PROTECTED_HEADERS: Final = frozenset({cose.ALG, cose.CONTENT_TYPE, cose.KID, cose.TYP})
UNPROTECTED_HEADERS: Final = frozenset({cose.KID})

_REQUIRED: Final = frozenset(
    {NONCE, UEID, OEMID, HWMODEL, DBGSTAT, EAT_PROFILE, BOOTCOUNT, BOOTSEED, SWNAME, SWVERSION}
    | {SLOT_STATE, EFUSE_SECURE_VERSION, DATA_IMAGES, ADDRESSES, OWNER_KEYS, FENCE}
)
_DEBUG_STATES: Final = tuple(DebugStatus)
_DIGEST_SIZES: Final = {-16: 32, -43: 48, -44: 64}


class SlotState(IntEnum):
    """State of the running slot, with the numbers of ESP-IDF's otadata."""

    NEW = 0
    PENDING = 1
    VALID = 2
    INVALID = 3
    ABORTED = 4
    UNDEFINED = 0xFFFFFFFF


_SLOT_STATES: Final = {int(state): state for state in SlotState}


class Evidence(NamedTuple):
    """The envelope, opened. Nothing in it is verified."""

    anchor_id: bytes
    """The device's hint at its anchor, 20 bytes."""
    certificates: tuple[bytes, ...]
    token: bytes


class Token(NamedTuple):
    """The claims of a token. What the application says about itself: never a reason for more trust."""

    nonce: bytes
    ueid: bytes
    oemid: int | bytes
    hwmodel: bytes
    debug_status: DebugStatus
    boot_count: int
    boot_seed: bytes
    name: str
    version: str
    slot_state: SlotState
    efuse_secure_version: int
    data_images: Mapping[str, Measurement]
    addresses: tuple[str, ...]
    owner_keys: tuple[bytes, ...]
    fence: int
    confirmation_key: PublicKey | None
    """Key in ``cnf``: the device's TLS key of this boot, if it has one."""


def parse_evidence(data: bytes) -> Evidence:
    """Open the envelope.

    Args:
        data: the evidence as received.

    Raises:
        Reject: ``size``, ``cbor.*``, ``evidence.*`` or ``chain.len``.
    """
    value = strict_loads(data, EVIDENCE_LIMIT, max_depth=2)
    if not isinstance(value, list) or not value:
        raise Reject(Code.EVIDENCE_STRUCTURE, "the evidence is not an array")
    if type(value[0]) is not int or value[0] != EVIDENCE_VERSION:
        raise Reject(Code.EVIDENCE_VERSION, f"evidence version {value[0]!r:.20}, expected {EVIDENCE_VERSION}")
    if len(value) != 4:
        raise Reject(Code.EVIDENCE_STRUCTURE, f"the evidence is an array of {len(value)}, expected 4")
    _, anchor_id, certificates, token = value
    if not isinstance(anchor_id, bytes) or len(anchor_id) != 20:
        raise Reject(Code.EVIDENCE_STRUCTURE, "the anchor id is not a byte string of 20 bytes")
    if not isinstance(certificates, list) or not isinstance(token, bytes):
        raise Reject(Code.EVIDENCE_STRUCTURE, "the evidence is not [1, anchor id, [certificates], EAT]")
    if not certificates:
        raise Reject(Code.CHAIN_LEN, "the evidence holds no certificate")
    chain = tuple(item for item in certificates if isinstance(item, bytes))
    if len(chain) != len(certificates):
        raise Reject(Code.EVIDENCE_STRUCTURE, "a certificate is not a byte string")
    return Evidence(anchor_id, chain, token)


def decode_claims(payload: bytes) -> dict[int | str, Value]:
    """Rule 1, but for the keys' types: the payload as a map, cheap enough to look at before any signature.

    Raises:
        Reject: ``cbor.*`` or ``eat.structure``.
    """
    claims = strict_loads(payload, EVIDENCE_LIMIT)
    if not isinstance(claims, dict):
        raise Reject(Code.EAT_STRUCTURE, "the token's payload is not a map")
    return claims


def nonce_of(claims: Mapping[int | str, Value]) -> bytes:
    """Rule 2.

    Raises:
        Reject: ``eat.nonce``.
    """
    nonce = claims.get(NONCE)
    if not isinstance(nonce, bytes) or not 8 <= len(nonce) <= 64:
        raise Reject(Code.EAT_NONCE, "eat_nonce (10) is missing or not one byte string of 8 to 64 bytes")
    return nonce


def read_token(claims: Mapping[int | str, Value]) -> Token:
    """Check rules 1 to 4 and give the claims their names.

    Raises:
        Reject: ``eat.*``; ``key.*`` for a weak key in ``cnf``.
    """
    as_required = claims.keys() == _REQUIRED
    if not as_required and any(not isinstance(label, int) for label in claims):
        raise Reject(Code.EAT_STRUCTURE, "the token holds a claim with a text key")
    if claims.get(EAT_PROFILE) != PROFILE:
        raise Reject(Code.EAT_PROFILE, f"eat_profile {claims.get(EAT_PROFILE)!r:.60}, expected {PROFILE}")
    nonce = nonce_of(claims)
    if UEID not in claims:
        raise Reject(Code.EAT_UEID, "ueid (256) is missing")
    debug_status = _debug_status(claims.get(DBGSTAT))
    if not as_required:
        _check_labels(claims)
    return Token(
        nonce=nonce,
        ueid=_ueid(claims[UEID]),
        oemid=_oemid(claims[OEMID]),
        hwmodel=_bytes(claims[HWMODEL], 1, 32, "hwmodel"),
        debug_status=debug_status,
        boot_count=_uint(claims[BOOTCOUNT], "bootcount"),
        boot_seed=_bytes(claims[BOOTSEED], 8, 64, "bootseed"),
        name=_text(claims[SWNAME], 1, "swname"),
        version=_version(claims[SWVERSION]),
        slot_state=_slot_state(claims[SLOT_STATE]),
        efuse_secure_version=_uint(claims[EFUSE_SECURE_VERSION], "eFuse secure version"),
        data_images=_data_images(claims[DATA_IMAGES]),
        addresses=tuple([_text(item, 1, "address", 255) for item in _list(claims[ADDRESSES], "addresses")]),
        owner_keys=tuple([_bytes(item, 8, 8, "owner key id") for item in _list(claims[OWNER_KEYS], "owner keys")]),
        fence=_uint(claims[FENCE], "fence"),
        confirmation_key=_confirmation_key(claims[CNF]) if CNF in claims else None,
    )


def _check_labels(claims: Mapping[int | str, Value]) -> None:
    """Rule 3."""
    if missing := _REQUIRED - claims.keys():
        raise Reject(Code.EAT_CLAIM, f"claim {max(missing)} is missing")
    if excess := claims.keys() - _REQUIRED - {CNF}:
        raise Reject(Code.EAT_UNKNOWN, f"claim {min(map(repr, excess)):.40} is not part of the profile")


def _debug_status(value: Value) -> DebugStatus:
    if type(value) is not int or not 0 <= value < len(_DEBUG_STATES):
        raise Reject(Code.EAT_DBGSTAT, "dbgstat (263) is missing or not an integer from 0 to 4")
    return _DEBUG_STATES[value]


def _uint(value: Value, name: str) -> int:
    if type(value) is not int or not 0 <= value < _UINT_END:
        raise Reject(Code.EAT_CLAIM, f"{name} is not an unsigned integer below 2^63 - 1")
    return value


def _bytes(value: Value, least: int, most: int, name: str) -> bytes:
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise Reject(Code.EAT_CLAIM, f"{name} is not a byte string of {least} to {most} bytes")
    return value


def _text(value: Value, least: int, name: str, most: int = 32) -> str:
    if not isinstance(value, str) or not least <= len(value) <= most or not value.isprintable():
        raise Reject(Code.EAT_CLAIM, f"{name} is not printable text of {least} to {most} characters")
    return value


def _list(value: Value, name: str) -> list[Value]:
    if not isinstance(value, list) or len(value) > 8:
        raise Reject(Code.EAT_CLAIM, f"{name} is not an array of at most 8")
    return value


def _ueid(value: Value) -> bytes:
    if not isinstance(value, bytes) or not 7 <= len(value) <= 33:
        raise Reject(Code.EAT_UEID, "ueid (256) is not a byte string of 7 to 33 bytes")
    return value


def _oemid(value: Value) -> int | bytes:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, bytes) and len(value) in (3, 16):
        return value
    raise Reject(Code.EAT_CLAIM, "oemid is not an unsigned integer, 3 or 16 bytes")


def _version(value: Value) -> str:
    if not isinstance(value, list) or len(value) not in (1, 2) or (len(value) == 2 and type(value[1]) is not int):
        raise Reject(Code.EAT_CLAIM, "swversion is not [text, ?scheme]")
    return _text(value[0], 0, "swversion")


def _slot_state(value: Value) -> SlotState:
    state = _SLOT_STATES.get(_uint(value, "slot state"))
    if state is None:
        raise Reject(Code.EAT_CLAIM, f"slot state {value!r} is none of otadata's states")
    return state


def _data_images(value: Value) -> Mapping[str, Measurement]:
    if not isinstance(value, dict) or len(value) > 16:
        raise Reject(Code.EAT_CLAIM, "data images are not a map of at most 16")
    images: dict[str, Measurement] = {}
    for label, digest in value.items():
        if not isinstance(label, str) or not 0 < len(label) <= 16 or not label.isprintable():
            raise Reject(Code.EAT_CLAIM, "the label of a data image is not printable text of 1 to 16 characters")
        alg, content = digest if isinstance(digest, list) and len(digest) == 2 else (None, None)
        if type(alg) is not int or not isinstance(content, bytes) or _DIGEST_SIZES.get(alg) != len(content):
            raise Reject(Code.EAT_CLAIM, f"data image {label!r} has no digest of a known algorithm and its length")
        images[label] = Measurement(alg, content)
    return MappingProxyType(images)


def _confirmation_key(value: Value) -> PublicKey:
    if not isinstance(value, dict) or value.keys() != {1}:
        raise Reject(Code.EAT_CNF, "cnf is not {1: COSE_Key}")
    return keys.from_cose(value[1])
