# SPDX-License-Identifier: Apache-2.0
"""The keys that nonces are made with, in a directory, as a Secret is mounted.

Rules (tests name them):

1. File `N` (0 to 255, without leading zeros) holds at least 32 random bytes: key number N.
2. The highest number is the current key; the others are honoured until they are removed.
3. File `N.next` holds key number N as well, honoured and never current: so a new key is with every replica before the
   first nonce is made with it. A number stands there once, in one of the two ways.
4. Files with other names, as a Secret mount has them, are ignored; a directory without a current key is refused.
"""

from pathlib import Path
from typing import Final

from attestation import files
from attestation.errors import Code, Reject
from attestation.nonce import KeyRing

_NEXT: Final = ".next"


def read_ring(folder: Path) -> KeyRing:
    """Read a directory of nonce keys.

    Raises:
        Reject: ``store.unavailable`` where it cannot be read, ``store.invalid`` where a rule is broken. Never holds a key.
    """
    try:
        made: dict[int, bytes] = {}
        coming: dict[int, bytes] = {}
        for path in folder.iterdir():
            name = path.name.removesuffix(_NEXT)
            if name.isascii() and name.isdecimal():
                (made if name == path.name else coming)[_number(name)] = files.read(path)
        if not made:
            raise ValueError("no file in it is named by a number, so there is no nonce key")
        if twice := made.keys() & coming.keys():
            raise ValueError(f"key {min(twice)} stands there twice, as {min(twice)} and as {min(twice)}{_NEXT}")
        return KeyRing(current=max(made), keys=made | coming)
    except OSError as error:
        raise Reject(Code.STORE_UNAVAILABLE, f"{folder}: {error.strerror}") from error
    except ValueError as error:
        raise Reject(Code.STORE_INVALID, f"{folder}: {error}") from error


def _number(name: str) -> int:
    if name != str(int(name)):
        raise ValueError(f"the name {name} has leading zeros: {int(name)} is meant")
    return int(name)
