# SPDX-License-Identifier: Apache-2.0
"""The keys that nonces are made with, in a directory, as a Secret is mounted.

Rules (tests name them):

1. File `N` (0 to 255) holds at least 32 random bytes: key number N.
2. The highest number is the current key; the others are honoured until they are removed.
3. Files with other names, as a Secret mount has them, are ignored; a directory without any key is refused.
"""

from pathlib import Path

from attestation import files
from attestation.errors import Code, Reject
from attestation.nonce import KeyRing


def read_ring(folder: Path) -> KeyRing:
    """Read a directory of nonce keys.

    Raises:
        Reject: ``store.unavailable`` where it cannot be read, ``store.invalid`` where a rule is broken. Never holds a key.
    """
    try:
        ring = {int(path.name): files.read(path) for path in folder.iterdir() if path.name.isdecimal()}
        if not ring:
            raise ValueError("no file in it is named by a number, so there is no nonce key")
        return KeyRing(current=max(ring), keys=ring)
    except OSError as error:
        raise Reject(Code.STORE_UNAVAILABLE, f"{folder}: {error.strerror}") from error
    except ValueError as error:
        raise Reject(Code.STORE_INVALID, f"{folder}: {error}") from error
