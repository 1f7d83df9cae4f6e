# SPDX-License-Identifier: Apache-2.0
"""The service's own keys: what it makes nonces with, what it signs results with, and what it tells others to accept.

Rules (tests name them):

1. The nonce keys are a directory (``attestation.nonce_keys``). The result key is a PEM private key, P-256 or Ed25519.
2. Published are the result key's public half and further public keys: the next key, before it signs, and the last one,
   while its results live.
3. Files are looked at again every second and at SIGHUP. If a changed one cannot be used, the keys read before stay in
   force, the service is not ready, and its log says why.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from attestation import files, keys
from attestation.cbor import dumps
from attestation.errors import Code, Reject
from attestation.keys import Alg, PrivateKey
from attestation.nonce import KeyRing
from attestation.nonce_keys import read_ring

KEY_SET_TYPE = "application/cose-key-set"
_KID = 2
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """What was read.

    Args:
        ring: makes nonces.
        ear: signs results.
        key_set: COSE_KeySet (RFC 9052 section 7) of all published keys, each with its kid.
    """

    ring: KeyRing
    ear: PrivateKey = field(repr=False)
    key_set: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where the keys are."""

    nonce_keys: Path
    ear_key: Path
    published: Sequence[Path] = ()

    def read(self) -> ServiceKeys:
        """All keys. Raises Reject ``store.unavailable`` or ``store.invalid``, naming the file and never a key."""
        ring = read_ring(self.nonce_keys)
        ear = _named(self.ear_key, _result_key)
        public = [ear.public_key(), *(_named(path, keys.from_pem) for path in self.published)]
        by_id = {keys.key_id(key): key for key in public}
        key_set = dumps([{**keys.to_cose(key), _KID: kid} for kid, key in by_id.items()])
        return ServiceKeys(ring, ear, key_set)

    def stamp(self) -> tuple[object, ...]:
        """Changes whenever a file does (rule 3); a file that is not there is a state like any other."""
        paths = [self.ear_key, *self.published]
        try:
            paths += sorted(self.nonce_keys.iterdir())
        except OSError:
            paths.append(self.nonce_keys)
        return tuple((str(path), _stat(path)) for path in paths)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _result_key(pem: bytes) -> PrivateKey:
    key = keys.private_from_pem(pem)
    if keys.alg_of(key) not in (Alg.ES256, Alg.EDDSA):
        raise Reject(Code.KEY_CURVE, "results are signed with P-256 or Ed25519")
    return key


def _named(path: Path, read: Callable[[bytes], K]) -> K:
    content = files.read(path)
    try:
        return read(content)
    except Reject as reject:
        raise Reject(Code.STORE_INVALID, f"{path}: {reject.message}") from reject
