# SPDX-License-Identifier: Apache-2.0
"""The listing token: what an Akri Instance says about a device, signed by the discovery handler. Pure.

Akri's broker properties are written by whoever reaches the agent's socket, and a Configuration may override them; only
what this token says is to be believed. Rules (tests name them):

1. A token is a statement of content type ``application/vnd.flashjob.listing+cbor``, signed with ES256, at most 1,024
   bytes; as a property it is base64url without padding, in its one canonical form.
2. It holds {1: ueid, 2: measurement, 3: application, 4: version, 5: boot id, 6: SHA-256 of the evidence as received,
   7: policy hash, 8: endpoint, 9: root of trust}, all of them, and nothing else.
3. It does not expire: who is no longer listed is no longer trusted. Two keys are accepted, so that they can be rotated.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, PlainSerializer

from attestation import statement
from attestation.errors import Code, Reject
from attestation.keys import Alg, PrivateKey, PublicKey, alg_of, key_id
from attestation.policy import Measurement, RootOfTrust
from attestation.statement import Bytes16, Bytes32, Statement, Strict, Ueid

CONTENT_TYPE: Final = "application/vnd.flashjob.listing+cbor"
MAX_TOKEN_BYTES: Final = 1024

FLASHJOB_LISTING: Final = "FLASHJOB_LISTING"
"""The token. The other properties of a device repeat parts of it for people and brokers; they prove nothing."""
FLASHJOB_DEVICE_ID: Final = "FLASHJOB_DEVICE_ID"
FLASHJOB_APPLICATION: Final = "FLASHJOB_APPLICATION"
FLASHJOB_VERSION: Final = "FLASHJOB_VERSION"
FLASHJOB_ENDPOINT: Final = "FLASHJOB_ENDPOINT"
FLASHJOB_CHIP: Final = "FLASHJOB_CHIP"

UDEV_DEVNODE: Final = "UDEV_DEVNODE"
UDEV_DEVPATH: Final = "UDEV_DEVPATH"
FLASHJOB_USB_SERIAL: Final = "FLASHJOB_USB_SERIAL"
"""Properties of a port."""

_HASH_SIZES: Final = {-16: 32, -43: 48, -44: 64}
_LABELS: Final = {
    1: "ueid",
    2: "measurement",
    3: "application",
    4: "version",
    5: "boot_id",
    6: "evidence_sha256",
    7: "policy_hash",
    8: "endpoint",
    9: "tier",
}


def _measurement(value: object) -> object:
    if isinstance(value, list) and len(value) == 2:
        value = Measurement(*value)
    if not isinstance(value, Measurement) or type(value.alg) is not int or not isinstance(value.value, bytes):
        raise ValueError("a measurement is [algorithm, bytes]")
    if _HASH_SIZES.get(value.alg) != len(value.value):
        raise ValueError(f"{len(value.value)} bytes do not fit hash algorithm {value.alg}")
    return value


def _tier(value: object) -> object:
    return RootOfTrust(value) if isinstance(value, str) else value


class Listing(Strict):
    """What a listed device had proven when it was listed."""

    ueid: Ueid
    measurement: Annotated[
        Measurement, BeforeValidator(_measurement), PlainSerializer(lambda m: [m.alg, m.value], return_type=list)
    ]
    """Of the running application, certified."""
    application: Annotated[str, Field(max_length=64)]
    """Project name, certified."""
    version: Annotated[str, Field(max_length=32)]
    """As the application says."""
    boot_id: Bytes16
    """Grant id of the running installation; zeros where it came from the factory."""
    evidence_sha256: Bytes32
    policy_hash: Bytes32
    endpoint: Annotated[str, Field(min_length=1, max_length=512)]
    """Where it was attested: host:port, with TLS https://host:port, or serial:DEVPATH."""
    tier: Annotated[RootOfTrust, BeforeValidator(_tier), PlainSerializer(str, return_type=str)]

    @property
    def device_id(self) -> str:
        """The ueid in hex, as objects name the device."""
        return self.ueid.hex()

    def same_but_for_evidence(self, other: Listing) -> bool:
        """Whether the other says the same, told from other evidence: then there is no need for a new token."""
        return self == other.model_copy(update={"evidence_sha256": self.evidence_sha256})


def mint_listing(listing: Listing, key: PrivateKey) -> bytes:
    """Sign a listing. Raises Reject ``cose.alg`` for a key that is not P-256."""
    if alg_of(key) is not Alg.ES256:
        raise Reject(Code.COSE_ALG, f"listing tokens are signed with ES256, the key is for {alg_of(key).name}")
    return statement.write(listing, _LABELS, CONTENT_TYPE, key)


def verify_listing(token: bytes, keys: Mapping[bytes, PublicKey]) -> Listing:
    """Check shape, key and signature of a token and return what it says.

    Args:
        token: the COSE_Sign1, decoded from the property by `decode_token`.
        keys: accepted public keys by key id (`by_key_id`).

    Raises:
        Reject: ``size``, ``cbor.*``, ``cose.*``, ``listing.structure``, ``statement.key`` or ``sig.*``.
    """
    message, kid, labels = statement.parse(token, CONTENT_TYPE, limit=MAX_TOKEN_BYTES, code=Code.LISTING_STRUCTURE)
    if message.alg is not Alg.ES256:
        raise Reject(Code.COSE_ALG, f"listing tokens are signed with ES256, this one with {message.alg.name}")
    listing = statement.build(Listing, _LABELS, labels, Code.LISTING_STRUCTURE)
    return statement.check_signature(Statement(listing, kid, message), keys)


def by_key_id(*keys: PublicKey) -> dict[bytes, PublicKey]:
    """The accepted keys as `verify_listing` wants them."""
    return {key_id(key): key for key in keys}


def encode_token(token: bytes) -> str:
    """A token as a property."""
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode("ascii")


def decode_token(text: str) -> bytes:
    """A token from a property. Raises Reject ``listing.structure`` for anything but its canonical form."""
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise Reject(Code.LISTING_STRUCTURE, "the property is not base64url without padding") from error
    if encode_token(token) != text:
        raise Reject(Code.LISTING_STRUCTURE, "the property is not canonical base64url without padding")
    return token
