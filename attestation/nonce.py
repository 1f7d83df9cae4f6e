# SPDX-License-Identifier: Apache-2.0
"""Nonces that remember what they are for, so that no server has to. Pure: time and randomness are arguments.

Layout, 32 bytes: ``version(1) = 1 || key number(1) || expiry(4, big-endian Unix seconds) || random(10) || mac(16)``,
``mac = HMAC-SHA256(key, label || first 16 bytes || length of ueid || ueid || audience)[:16]``.

A nonce is good if all of these rules hold:

1. It has 32 bytes and version 1.
2. Its key is in the ring: the current one, or the previous one during a rotation.
3. The MAC verifies for this device and this audience (the task attempt and the purpose): an answer for one device or
   one attempt is worthless for any other.
4. It has not expired, and does not expire later than one lifetime and 5 s from now: none of ours does.

That it is used only once is not decided here but in ``replay``.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from attestation.errors import Code, Reject

SIZE: Final = 32
RANDOM_SIZE: Final = 10
SKEW_SECONDS: Final = 5
_VERSION: Final = 1
_MAC_SIZE: Final = 16
_LABEL: Final = b"flashjob nonce v1\x00"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys that nonces are made with.

    Args:
        current: number of the key that new nonces use, 0 to 255.
        keys: key by number, each at least 32 bytes: the current one and those still honoured.
    """

    current: int
    keys: Mapping[int, bytes] = field(repr=False)
    macs: Mapping[int, HMAC] = field(init=False, repr=False, compare=False)
    """Each key's HMAC before its first byte, to be copied: half of what a short message's HMAC costs is its key."""

    def __post_init__(self) -> None:
        if self.current not in self.keys:
            raise ValueError(f"key {self.current} is not in the ring")
        for number, key in self.keys.items():
            if not 0 <= number <= 255 or len(key) < 32:
                raise ValueError(f"nonce key {number}: numbers are 0 to 255, keys have at least 32 bytes")
        object.__setattr__(self, "macs", {number: HMAC(key, SHA256()) for number, key in self.keys.items()})


def issue(ring: KeyRing, ueid: bytes, audience: bytes, *, now: int, ttl: int, random: bytes) -> bytes:
    """Make a nonce.

    Args:
        ring: the keys.
        ueid: the device that must answer.
        audience: what the answer will be used for, as task, attempt and purpose.
        now: Unix time in seconds.
        ttl: lifetime in seconds.
        random: 10 fresh random bytes.

    Returns:
        32 bytes.

    Raises:
        ValueError: ``random`` has the wrong length, or the time does not fit.
    """
    if len(random) != RANDOM_SIZE:
        raise ValueError(f"{RANDOM_SIZE} random bytes are needed, not {len(random)}")
    expiry = now + ttl
    if not 0 < expiry < 2**32:
        raise ValueError("the expiry does not fit into 4 bytes")
    head = bytes([_VERSION, ring.current]) + expiry.to_bytes(4, "big") + random
    return head + _mac(ring.macs[ring.current], head, ueid, audience)


def check(ring: KeyRing, nonce: bytes, ueid: bytes, audience: bytes, *, now: int, ttl: int) -> int:
    """Decide whether a nonce is ours and good for this device and audience now.

    Args:
        ring: the keys.
        nonce: what came back.
        ueid: the device that answered, by its enrolment.
        audience: what the answer is to be used for.
        now: Unix time in seconds.
        ttl: the longest lifetime that is issued, in seconds.

    Returns:
        Its expiry in Unix seconds: until then it must be remembered as used.

    Raises:
        Reject: ``nonce.structure``, ``nonce.key``, ``nonce.mac``, ``nonce.expired`` or ``nonce.future``.
    """
    if len(nonce) != SIZE or nonce[0] != _VERSION:
        raise Reject(Code.NONCE_STRUCTURE, f"not a version {_VERSION} nonce of {SIZE} bytes")
    keyed = ring.macs.get(nonce[1])
    if keyed is None:
        raise Reject(Code.NONCE_KEY, f"the nonce was made with key {nonce[1]}, which is not in the ring")
    head, mac = nonce[:-_MAC_SIZE], nonce[-_MAC_SIZE:]
    if not hmac.compare_digest(mac, _mac(keyed, head, ueid, audience)):
        raise Reject(Code.NONCE_MAC, "the nonce is not ours, or was issued for another device or purpose")
    expiry = int.from_bytes(nonce[2:6], "big")
    if now >= expiry:
        raise Reject(Code.NONCE_EXPIRED, f"the nonce expired {now - expiry} s ago: ask for a new one")
    if expiry > now + ttl + SKEW_SECONDS:
        raise Reject(Code.NONCE_FUTURE, f"the nonce expires in {expiry - now} s, the longest lifetime is {ttl} s")
    return expiry


def _mac(keyed: HMAC, head: bytes, ueid: bytes, audience: bytes) -> bytes:
    mac = keyed.copy()
    mac.update(b"%b%b%c%b%b" % (_LABEL, head, len(ueid), ueid, audience))
    return mac.finalize()[:_MAC_SIZE]
