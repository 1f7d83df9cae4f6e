# SPDX-License-Identifier: Apache-2.0
"""From an eFuse key to a device's identity, and the line that the factory list gets. Pure.

Rules (tests name them):

1. The bootloader asks the HMAC peripheral for HMAC-SHA256(eFuse key, "FlashJob UDS 1"); the 32 bytes are the UDS.
2. The UDS key pair follows from the UDS as in Open Profile for DICE (attestation.mint.signing_key).
3. A provisioning station that draws the eFuse key computes the same, makes the proof of possession for its batch, and
   then forgets key, UDS and private key: nothing of them is stored or printed.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from attestation import enrolment, keys, mint
from attestation.factory_list import Entry
from attestation.keys import Alg, PublicKey

LABEL: Final = b"FlashJob UDS 1"
KEY_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Born:
    """A device with an identity: its public key, and the proof that somebody held the private one."""

    anchor: PublicKey
    entry: Entry

    @property
    def ueid(self) -> str:
        """The device id, hex."""
        return keys.ueid(self.anchor).hex()


def uds(efuse_key: bytes) -> bytes:
    """Rule 1. Raises ValueError unless the key has 32 bytes."""
    if len(efuse_key) != KEY_SIZE:
        raise ValueError(f"an eFuse key has {KEY_SIZE} bytes, not {len(efuse_key)}")
    return hmac.digest(efuse_key, LABEL, "sha256")


def born(secret: bytes, batch: str, *, alg: Alg = Alg.ES256, hwmodel: str | None = None) -> Born:
    """Rules 2 and 3.

    Args:
        secret: the UDS.
        batch: that the device belongs to.
        alg: of its keys.
        hwmodel: what it will claim as its model; None: not listed.
    """
    key = mint.signing_key(secret, alg)
    anchor = key.public_key()
    return Born(anchor, Entry(keys.encode_cose(anchor), enrolment.mint_proof(key, batch), None, hwmodel))
