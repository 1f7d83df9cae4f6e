# SPDX-License-Identifier: Apache-2.0
"""A UDS certificate under a vendor CA: X.509 (RFC 5280), read only at enrolment, never from inside evidence. Pure.

The path goes from the device's UDS certificate over the given intermediates to one of the given roots. Rules (tests name
them), all ``enrol.certificate``:

 1. 1 to `MOST_CERTIFICATES` certificates, each at most `LIMIT_BYTES`, DER or PEM, version 3, without trailing bytes.
 2. The last one is signed by, or is, a root that the enroller gave; roots count by their bytes, not by their name.
 3. Every certificate names its issuer by the issuer's subject, byte for byte; where both state key ids, they agree.
 4. Every signature verifies: ECDSA on P-256 with SHA-256, on P-384 with SHA-384, or Ed25519; nothing else.
 5. Every certificate, the root as well, is valid now.
 6. Every certificate may sign certificates: BasicConstraints critical with CA true, KeyUsage critical with keyCertSign. The
    device's own is no exception, since its key certifies the bootloader. A path length is honoured; below the device's
    certificate nothing is X.509 here, so its own path length is not looked at.
 7. A critical extension that is not one of BasicConstraints, KeyUsage or ExtendedKeyUsage is refused; names are not
    constrained here, so NameConstraints are refused even if not critical.
 8. The device's key is Ed25519, P-256 or P-384, and not that of an unprovisioned device.

`cryptography`'s own path verification is made for web servers (subject alternative names, no Ed25519) and does not fit.
Revocation is not looked up: a device is revoked in the store (``standing``).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtensionOID

from attestation import keys
from attestation.errors import Code, Reject
from attestation.keys import PublicKey

MOST_CERTIFICATES: Final = 4
LIMIT_BYTES: Final = 8 * 1024
_KNOWN_CRITICAL: Final = frozenset(
    {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
)

_UNREADABLE: Final = (
    ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip
"""What `cryptography` raises for certificates that it cannot read; parts of them it reads only when they are asked for."""


def parse(data: bytes) -> list[x509.Certificate]:
    """Rule 1 for one file: one certificate in DER, or several in PEM. Raises Reject."""
    if not 0 < len(data) <= LIMIT_BYTES * MOST_CERTIFICATES:
        raise Reject(Code.ENROL_CERTIFICATE, f"{len(data)} bytes of certificates")
    try:
        if b"-----BEGIN" in data:
            found = x509.load_pem_x509_certificates(data)
        else:
            found = [x509.load_der_x509_certificate(data)]
    except _UNREADABLE as error:
        raise Reject(Code.ENROL_CERTIFICATE, f"not X.509 certificates in DER or PEM: {error}") from error
    if any(len(one.public_bytes(serialization.Encoding.DER)) > LIMIT_BYTES for one in found):
        raise Reject(Code.ENROL_CERTIFICATE, f"a certificate is larger than {LIMIT_BYTES} bytes")
    return found


def device_key(path: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: int) -> PublicKey:
    """The UDS public key that a vendor CA vouches for.

    Args:
        path: the device's certificate first, then intermediates in order.
        roots: certificates of the vendor that the enroller trusts.
        now: Unix seconds.

    Raises:
        Reject: ``enrol.certificate``, naming the certificate by its place.
    """
    if not 1 <= len(path) <= MOST_CERTIFICATES:
        raise Reject(Code.ENROL_CERTIFICATE, f"{len(path)} certificates, 1 to {MOST_CERTIFICATES} are read")
    chain = list(path)
    if chain[-1] not in roots:
        try:
            chain.append(_root_of(chain[-1], roots))
        except _UNREADABLE as error:
            raise Reject(Code.ENROL_CERTIFICATE, f"the last certificate's issuer: {error}") from error
    elif len(chain) == 1:
        raise Reject(Code.ENROL_CERTIFICATE, "the device's certificate is one of the roots: nobody vouches for it")
    at = datetime.fromtimestamp(now, UTC)
    for place, certificate in enumerate(chain):
        where = "the device's certificate" if place == 0 else f"certificate {place} above the device's"
        try:
            _check(certificate, at, below=place - 1)
            if place:
                _check_issued(chain[place - 1], certificate)
        except Reject as reject:
            raise Reject(Code.ENROL_CERTIFICATE, f"{where}: {reject.message}") from reject
        except _UNREADABLE as error:
            raise Reject(Code.ENROL_CERTIFICATE, f"{where}: {error}") from error
    return _usable(chain[0])


def _root_of(last: x509.Certificate, roots: Sequence[x509.Certificate]) -> x509.Certificate:
    """Rule 2. Of roots with one name, the one whose key made the signature."""
    named = [root for root in roots if root.subject.public_bytes() == last.issuer.public_bytes()]
    for root in named:
        try:
            last.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return root
    why = "has that name but not that key" if named else "has that name"
    raise Reject(Code.ENROL_CERTIFICATE, f"issued by {last.issuer.rfc4514_string()!r:.120}; no given root {why}")


def _check(certificate: x509.Certificate, at: datetime, *, below: int) -> None:
    """Rules 1, 5, 6 and 7. `below`: number of CA certificates between this one and the device's; -1 for the device's."""
    if certificate.version is not x509.Version.v3:
        raise _bad("not version 3")
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        valid = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        raise _bad(f"not valid now, only from {valid}")
    extensions = certificate.extensions
    for extension in extensions:
        if extension.oid == ExtensionOID.NAME_CONSTRAINTS:
            raise _bad("name constraints are not supported")
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise _bad(f"critical extension {extension.oid.dotted_string} is not understood")
    try:
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise _bad(str(error)) from error
    if not basic.critical or not basic.value.ca:
        raise _bad("BasicConstraints are not critical with CA true")
    if not usage.critical or not usage.value.key_cert_sign:
        raise _bad("KeyUsage is not critical with keyCertSign")
    if below >= 0 and basic.value.path_length is not None and below > basic.value.path_length:
        raise _bad(f"path length {basic.value.path_length} is exceeded")


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Rules 3 and 4."""
    key, algorithm = issuer.public_key(), certificate.signature_hash_algorithm
    if isinstance(key, ec.EllipticCurvePublicKey):
        fits = (isinstance(key.curve, ec.SECP256R1) and isinstance(algorithm, hashes.SHA256)) or (
            isinstance(key.curve, ec.SECP384R1) and isinstance(algorithm, hashes.SHA384)
        )
    else:
        fits = isinstance(key, ed25519.Ed25519PublicKey)
    if not fits:
        raise _bad("signs with another algorithm than P-256 with SHA-256, P-384 with SHA-384, Ed25519")
    if certificate.issuer.public_bytes() != issuer.subject.public_bytes():
        raise _bad("its subject is not the issuer that the certificate below names")
    stated, own = _authority_key_id(certificate), _subject_key_id(issuer)
    if stated is not None and own is not None and stated != own:
        raise _bad("its key id is not the one that the certificate below names")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError) as error:
        raise _bad("its key did not sign the certificate below") from error


def _usable(certificate: x509.Certificate) -> PublicKey:
    """Rule 8."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise _bad("the device's key is none of Ed25519, P-256, P-384")
    try:
        usable = keys.from_raw(keys.alg_of(key), keys.raw(key))
    except Reject as reject:
        raise _bad(f"the device's key: {reject}") from reject
    if keys.dice_id(usable) in keys.UNPROVISIONED_IDS:
        raise _bad("the device's key belongs to the all-zero device secret")
    return usable


def _authority_key_id(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None


def _subject_key_id(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _bad(message: str) -> Reject:
    return Reject(Code.ENROL_CERTIFICATE, message)
