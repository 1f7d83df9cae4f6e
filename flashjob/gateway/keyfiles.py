# SPDX-License-Identifier: Apache-2.0
"""The gateway's keys, from mounted Secrets.

1. The grant key is a PEM private key (PKCS#8), P-256 or Ed25519.
2. Nonce keys are a directory, as `attestation.nonce_keys` reads it.
"""

from pathlib import Path

from attestation.errors import Reject
from attestation.keys import Alg, alg_of, private_from_pem
from attestation.nonce_keys import read_ring
from flashjob.errors import FlashJobError
from flashjob.wire.reasons import Reason

from .case import Keys


def load_keys(grant_key: Path, nonce_keys: Path) -> Keys:
    """Read both.

    Raises:
        FlashJobError: KeyUnreadable, naming the file.
    """
    try:
        key = private_from_pem(grant_key.read_bytes())
        if alg_of(key) not in (Alg.ES256, Alg.EDDSA):
            raise ValueError("the grant key must be P-256 or Ed25519")
    except (OSError, ValueError, Reject) as error:
        raise _unreadable(grant_key, error) from error
    try:
        return Keys(read_ring(nonce_keys), key)
    except Reject as reject:
        raise _unreadable(nonce_keys, reject) from reject


def _unreadable(path: Path, error: Exception) -> FlashJobError:
    return FlashJobError(
        Reason.KEY_UNREADABLE, f"{path}: {error}", "check the Secrets flashjob-grant-key and flashjob-nonce-keys"
    )
