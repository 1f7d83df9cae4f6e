# SPDX-License-Identifier: Apache-2.0
"""Public keys as COSE_Key (RFC 9052 section 7), and the ids that are made from them.

A COSE_Key is accepted only if all of these rules hold:

1. It is a map of the labels 1 kty, 2 kid, 3 alg, 4 key_ops, -1 crv, -2 x, -3 y; the private part -4 is refused first.
2. kty and crv name Ed25519, P-256 or P-384.
3. x (and y for P-256 and P-384) are byte strings of exactly the curve's width; a compressed y is refused.
4. A P-256 or P-384 point is on its curve; an Ed25519 key is canonical and not of small order. (An Ed25519 key that is no
   point of the curve is not looked for: no signature verifies under it.)
5. alg, if present, is the curve's algorithm; key_ops, if present, contain "verify".
"""

import hashlib
import hmac
from enum import IntEnum
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attestation.cbor import Value, Writable, dumps, strict_loads
from attestation.errors import Code, Reject

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Alg(IntEnum):
    """COSE signature algorithms (RFC 9053). The key decides which one applies, never the message."""

    ES256 = -7
    EDDSA = -8
    ES384 = -35


ID_SALT: Final = bytes.fromhex(
    "DBDBAEBC8020DA9FF0DD5A24C83AA5A54286DFC263031E329B4DA148430659FE"
    "62CDB5B7E1E00FC680306711EB444AF77209359496FCFF1DB9520BA51C7B29EA"
)
"""Salt of a key's DICE id (Open Profile for DICE, "UDS_ID and CDI_ID")."""

UNPROVISIONED_IDS: Final = frozenset(
    bytes.fromhex(value)
    for value in (
        "7a06eee41b789f4863d86b8778b1a201a6fedd56",  # Ed25519
        "672d0053ae4513fbb3bac8209daeb3e8897681cd",  # P-256
        "04c265fe06ff230e39b6322eea9e010711fb66b4",  # P-384
        "4c514d88db0f81d57beb96177e3d7ea4aa581e66",  # P-256, of the compressed point
        "760a97ded0b381400d9d11c154d6be3d2d51171f",  # P-384, of the compressed point
    )
)
"""Ids of the keys that the all-zero UDS gives, in every form: a device that has them was never provisioned."""

_ALG_OF_CURVE: Final = {ec.SECP256R1.name: Alg.ES256, ec.SECP384R1.name: Alg.ES384}
_KTY, _KID, _ALG, _OPS, _CRV, _X, _Y, _D = 1, 2, 3, 4, -1, -2, -3, -4
_FIELDS: Final = frozenset({_KTY, _KID, _ALG, _OPS, _CRV, _X, _Y})
_KTY_OKP, _KTY_EC2 = 1, 2
_CRV_P256, _CRV_P384, _CRV_ED25519 = 1, 2, 6
_OP_VERIFY = 2
_P25519: Final = 2**255 - 19
_ORDER_8_Y: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P25519 - 1, _ORDER_8_Y, _P25519 - _ORDER_8_Y})


def alg_of(key: PublicKey | PrivateKey) -> Alg:
    """The one algorithm that this key may be used with.

    Raises:
        Reject: ``key.curve``, a key that this package does not use.
    """
    curve = getattr(key, "curve", None)
    if curve is not None:
        alg = _ALG_OF_CURVE.get(curve.name)
        if alg is not None:
            return alg
    elif isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return Alg.EDDSA
    raise Reject(Code.KEY_CURVE, "the key is none of Ed25519, P-256, P-384")


def from_cose(source: bytes | Value) -> PublicKey:
    """Read a public key from an encoded or decoded COSE_Key.

    Raises:
        Reject: a rule of this module is broken.
    """
    return read_cose(source)[0]


def read_cose(source: bytes | Value) -> tuple[PublicKey, bytes]:
    """``from_cose``, and the key in the form that ``raw`` gives.

    Raises:
        Reject: a rule of this module is broken.
    """
    value = strict_loads(source, 512) if isinstance(source, bytes) else source
    if not isinstance(value, dict):
        raise Reject(Code.KEY_STRUCTURE, "a COSE_Key is a map")
    if _D in value:
        raise Reject(Code.KEY_PRIVATE, "the COSE_Key holds d (-4), the private part")
    if not value.keys() <= _FIELDS:
        raise Reject(Code.KEY_STRUCTURE, f"the unknown COSE_Key field {min(map(repr, value.keys() - _FIELDS)):.40}")
    kty, crv, x, y = value.get(_KTY), value.get(_CRV), value.get(_X), value.get(_Y)
    if type(kty) is not int or kty not in (_KTY_OKP, _KTY_EC2):
        raise Reject(Code.KEY_TYPE, f"key type {kty!r:.40}, expected 1 (OKP) or 2 (EC2)")
    if type(crv) is not int or (kty, crv) not in (
        (_KTY_OKP, _CRV_ED25519),
        (_KTY_EC2, _CRV_P256),
        (_KTY_EC2, _CRV_P384),
    ):
        raise Reject(Code.KEY_CURVE, f"curve {crv!r:.40} for key type {kty}, expected 6 for OKP, 1 or 2 for EC2")
    width = 48 if crv == _CRV_P384 else 32
    if not isinstance(x, bytes) or len(x) != width:
        raise Reject(Code.KEY_LENGTH, f"x is not a byte string of {width} bytes")
    if kty == _KTY_OKP:
        if _Y in value:
            raise Reject(Code.KEY_STRUCTURE, "an OKP key has no y")
        alg, point = Alg.EDDSA, x
    else:
        if not isinstance(y, bytes) or len(y) != width:
            raise Reject(Code.KEY_LENGTH, f"y is not a byte string of {width} bytes (compressed points are refused)")
        alg, point = Alg.ES384 if crv == _CRV_P384 else Alg.ES256, x + y
    _check_usage(value, alg)
    return from_raw(alg, point), point


def _check_usage(value: dict[int | str, Value], alg: Alg) -> None:
    if _KID in value and not isinstance(value[_KID], bytes):
        raise Reject(Code.KEY_STRUCTURE, "kid is not a byte string")
    if _ALG in value and (type(value[_ALG]) is not int or value[_ALG] != alg):
        raise Reject(Code.KEY_ALG, f"the key says algorithm {value[_ALG]!r:.40}, its curve means {int(alg)}")
    if _OPS in value:
        ops = value[_OPS]
        if not isinstance(ops, list) or not any(type(op) is int and op == _OP_VERIFY for op in ops):
            raise Reject(Code.KEY_OPS, "key_ops do not contain 2 (verify)")


def from_raw(alg: Alg, raw_key: bytes) -> PublicKey:
    """Read X || Y (ES256, ES384) or x (EdDSA), the form that ``raw`` gives.

    Raises:
        Reject: ``key.length``, ``key.point`` or ``key.smallorder``.
    """
    width = {Alg.ES256: 64, Alg.ES384: 96, Alg.EDDSA: 32}[alg]
    if len(raw_key) != width:
        raise Reject(Code.KEY_LENGTH, f"{len(raw_key)} bytes of public key, {alg.name} has {width}")
    if alg is Alg.EDDSA:
        y = int.from_bytes(raw_key, "little") & ((1 << 255) - 1)
        if y >= _P25519:
            raise Reject(Code.KEY_POINT, "the Ed25519 key is not in canonical form")
        if y in _SMALL_ORDER_Y:
            raise Reject(Code.KEY_SMALLORDER, "the Ed25519 key has small order")
        return ed25519.Ed25519PublicKey.from_public_bytes(raw_key)
    curve = ec.SECP256R1() if alg is Alg.ES256 else ec.SECP384R1()
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + raw_key)
    except ValueError as error:
        raise Reject(Code.KEY_POINT, f"the coordinates are not a point of {curve.name}") from error


def raw(key: PublicKey) -> bytes:
    """X || Y (64 or 96 bytes), or the 32 bytes of an Ed25519 key: the form that ids are made from."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key.public_bytes_raw()
    form = serialization.PublicFormat.UncompressedPoint
    return key.public_bytes(serialization.Encoding.X962, form)[1:]


def to_cose(key: PublicKey) -> dict[int, Writable]:
    """The COSE_Key of a public key, with alg and key_ops = verify, ready for ``cbor.dumps``."""
    alg, point = alg_of(key), raw(key)
    if alg is Alg.EDDSA:
        return {_KTY: _KTY_OKP, _ALG: int(alg), _OPS: [_OP_VERIFY], _CRV: _CRV_ED25519, _X: point}
    half = len(point) // 2
    crv = _CRV_P256 if alg is Alg.ES256 else _CRV_P384
    return {_KTY: _KTY_EC2, _ALG: int(alg), _OPS: [_OP_VERIFY], _CRV: crv, _X: point[:half], _Y: point[half:]}


def encode_cose(key: PublicKey) -> bytes:
    """``to_cose``, encoded."""
    return dumps(to_cose(key))


def from_pem(pem: bytes | str) -> PublicKey:
    """Read a PEM SubjectPublicKeyInfo.

    Raises:
        Reject: it is no such PEM, another kind of key, or a weak one.
    """
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Reject(Code.KEY_STRUCTURE, "not a PEM public key (BEGIN PUBLIC KEY)") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise Reject(Code.KEY_CURVE, "the PEM key is none of Ed25519, P-256, P-384")
    return from_raw(alg_of(key), raw(key))


def to_pem(key: PublicKey) -> str:
    """PEM SubjectPublicKeyInfo."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode("ascii")


def private_from_pem(pem: bytes | str) -> PrivateKey:
    """Read an unencrypted PKCS #8 private key.

    Raises:
        Reject: it is no such PEM, is encrypted, or another kind of key. The message never holds key material.
    """
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Reject(Code.KEY_STRUCTURE, "not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise Reject(Code.KEY_CURVE, "the PEM key is none of Ed25519, P-256, P-384")
    alg_of(key)
    return key


def private_to_pem(key: PrivateKey) -> bytes:
    """Unencrypted PKCS #8 PEM. The caller decides where it may be written, and with which rights."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def ueid(key: PublicKey) -> bytes:
    """The device identity: 01 (type RAND) || SHA-256(raw key), 33 bytes (RFC 9711 section 4.2.1)."""
    return b"\x01" + hashlib.sha256(raw(key)).digest()


def key_id(key: PublicKey) -> bytes:
    """First 8 bytes of SHA-256(raw key): kid of grant, release and listing keys."""
    return hashlib.sha256(raw(key)).digest()[:8]


def dice_id(key: PublicKey, *, compressed: bool = False) -> bytes:
    """The 20-byte id of a key in a DICE chain: HKDF-SHA512, top bit cleared (Open Profile for DICE).

    Args:
        compressed: use the 33- or 49-byte compressed point, as some old builds do; EdDSA has one form only.
    """
    if compressed and isinstance(key, ec.EllipticCurvePublicKey):
        return id_of_point(key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint))
    return id_of_point(raw(key))


def id_of_point(point: bytes) -> bytes:
    """The 20-byte DICE id of a key in the form that ``raw`` gives, or of a compressed point.

    HKDF-SHA512 (RFC 5869) of one block: extract with the salt, expand with "ID" and the block number 1.
    """
    derived = hmac.digest(hmac.digest(ID_SALT, point, "sha512"), b"ID\x01", "sha512")
    return bytes((derived[0] & 0x7F,)) + derived[1:20]
