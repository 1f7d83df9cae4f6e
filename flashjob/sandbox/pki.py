# SPDX-License-Identifier: Apache-2.0
"""The sandbox's own certificate authority: serving and client certificates, and the service-account key pair.

Everything is ECDSA P-256 and lives in one directory of mode 0700, private keys in files of mode 0600. A directory that
already holds a CA is used again, so that a sandbox can be restarted on its old state.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME: Final = datetime.timedelta(days=365)
_BACKDATE: Final = datetime.timedelta(minutes=5)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, from the first byte on."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common_name: str, organizations: Sequence[str] = ()) -> x509.Name:
    organization = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    return x509.Name([*organization, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Authority:
    """A certificate authority in a directory.

    Args:
        directory: where ca.crt, ca.key and what it issues are kept; created with mode 0700.
        now: the present time, aware; certificates are valid from five minutes before it for a year.
    """

    def __init__(self, directory: Path, now: datetime.datetime) -> None:
        self.directory = directory
        self._now = now
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.certificate_file.exists() and self._key_file.exists():
            loaded = load_pem_private_key(self._key_file.read_bytes(), None)
            if isinstance(loaded, ec.EllipticCurvePrivateKey):
                self._key = loaded
                self._certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
                return
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _name("flashjob-sandbox-ca")
        self._certificate = (
            self._builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        write_private(self._key_file, _key_pem(self._key))
        self.certificate_file.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    @property
    def certificate_file(self) -> Path:
        """PEM of the CA certificate."""
        return self.directory / "ca.crt"

    @property
    def _key_file(self) -> Path:
        return self.directory / "ca.key"

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _BACKDATE)
            .not_valid_after(self._now + LIFETIME)
        )

    def issue(
        self,
        file_name: str,
        common_name: str,
        *,
        organizations: Sequence[str] = (),
        hosts: Sequence[str] = (),
        server: bool = False,
    ) -> tuple[Path, Path]:
        """Issue a certificate over a new key; returns the paths of certificate and key.

        Args:
            file_name: stem of the two files, `.crt` and `.key`.
            common_name: the user name, of a client certificate.
            organizations: the groups, of a client certificate.
            hosts: DNS names and IP addresses, of a serving certificate.
            server: serving instead of client authentication.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            self._builder(_name(common_name, organizations), self._certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        certificate_file, key_file = self.directory / f"{file_name}.crt", self.directory / f"{file_name}.key"
        write_private(key_file, _key_pem(key))
        certificate_file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return certificate_file, key_file

    def service_account_keys(self) -> tuple[Path, Path]:
        """The pair that signs service-account tokens: paths of public and private key, made on first use."""
        public_file, private_file = self.directory / "sa.pub", self.directory / "sa.key"
        if not (public_file.exists() and private_file.exists()):
            key = ec.generate_private_key(ec.SECP256R1())
            write_private(private_file, _key_pem(key))
            public_file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return public_file, private_file


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
