# SPDX-License-Identifier: Apache-2.0
"""The TLS identity of one boot: a fresh key and a certificate that it signs itself. The device attests the key (`cnf`);
the certificate says nothing else, and its dates mean nothing, for a device has no clock."""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.keys import PublicKey

_BEGIN: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_END: Final = dt.datetime(9999, 12, 31, tzinfo=dt.UTC)
_NAME: Final = x509.Name([])


def boot_identity() -> tuple[ssl.SSLContext, PublicKey]:
    """What the server of this boot uses, and the key that its evidence names."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.TemporaryDirectory(prefix="flashjob-tls-") as folder:  # the ssl module reads files only
        file = Path(folder) / "identity.pem"
        file.touch(mode=0o600)
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(file)
    return context, key.public_key()
