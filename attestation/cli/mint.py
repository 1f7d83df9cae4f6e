# SPDX-License-Identifier: Apache-2.0
"""``attest mint``: keys, proofs, chains and evidence for tests and factories. What it mints is a device's word, no verdict."""

import hashlib
import os
import secrets
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attestation import dice_cbor, enrolment, factory_list, keys, succession
from attestation import mint as device
from attestation.cli.common import AsJson, from_hex, json_or, measurement, private_key, public_key, verb
from attestation.device_file import base64url
from attestation.keys import Alg, PrivateKey
from attestation.policy import Algorithm

app = typer.Typer(no_args_is_help=True, help="Make keys, proofs and evidence, as a device or a factory would.")

_ALGS = {Algorithm.ES256: Alg.ES256, Algorithm.ES384: Alg.ES384, Algorithm.EDDSA: Alg.EDDSA}
_EFUSES = {
    device.Mode.NOT_CONFIGURED: 0,
    device.Mode.NORMAL: dice_cbor.EFUSES_LOCKED,
    device.Mode.DEBUG: dice_cbor.EFUSE_SECURE_BOOT,
    device.Mode.RECOVERY: dice_cbor.EFUSES_LOCKED,
}
"""Security eFuses that fit each mode."""
KeyFile = Annotated[Path, typer.Option(help="UDS private key, PEM.")]


class CertificateForm(StrEnum):
    """How the chain is written."""

    CBOR = "cbor"
    X509 = "x509"


class OwnerKind(StrEnum):
    """What an owner's key is for."""

    RELEASE = "release"
    GRANT = "grant"


class Form(StrEnum):
    """How a factory list is written."""

    CSV = "csv"
    CBOR = "cbor"


@app.command()
@verb
def key(
    out: Annotated[Path, typer.Option(help="File for the private key (0600); the public one goes to FILE.pub.")],
    algorithm: Annotated[Algorithm, typer.Option(help="Signature algorithm.")] = Algorithm.ES256,
    uds: Annotated[
        str | None, typer.Option(help="Derive it from this secret, 32 bytes in hex, as OpenDICE does.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a device's UDS key."""
    alg = _ALGS[algorithm]
    if uds is None:
        made = _random(alg)
    else:
        secret = from_hex(uds, "--uds")
        if len(secret) != device.CDI_SIZE:
            raise typer.BadParameter("--uds wants 32 bytes in hex")
        made = device.signing_key(secret, alg)
    _write_private(out, keys.private_to_pem(made))
    public = made.public_key()
    _write(out.with_name(out.name + ".pub"), keys.to_pem(public).encode("ascii"))
    content = {"id": keys.ueid(public).hex(), "anchorId": keys.dice_id(public).hex()}
    json_or(as_json, content, lambda: typer.echo(f"id {content['id']}\nanchor {content['anchorId']}"))


@app.command()
@verb
def proof(
    key: Annotated[list[Path], typer.Option(help="UDS private key, PEM; repeatable, one device each.")],
    batch: Annotated[str, typer.Option(help="The batch that the devices belong to.")],
    form: Annotated[Form, typer.Option(help="How to write the list.")] = Form.CSV,
    oemid: Annotated[str | None, typer.Option(help="Maker that the devices claim, hex.")] = None,
    hwmodel: Annotated[str | None, typer.Option(help="Model that the devices claim.")] = None,
) -> None:
    """Write a factory list: public keys with proofs that they are held. For `attest enroll factory-list`."""
    maker = from_hex(oemid, "--oemid") if oemid else None
    entries = []
    for path in key:
        own = private_key(path, "--key")
        entries.append(
            factory_list.Entry(keys.encode_cose(own.public_key()), enrolment.mint_proof(own, batch), maker, hwmodel)
        )
    made = factory_list.write_csv(entries) if form is Form.CSV else factory_list.write_cbor(entries, batch)
    factory_list.read(made, batch)  # what nobody would enroll is found here, not at the customer's
    _write_stdout(made, binary=form is Form.CBOR)


@app.command()
@verb
def evidence(
    key: KeyFile,
    nonce: Annotated[str, typer.Option(help="The nonce to answer, hex.")],
    out: Annotated[Path | None, typer.Option(help="File for the evidence; default: standard output.")] = None,
    name: Annotated[str, typer.Option(help="Project name of the application.")] = "demo",
    version: Annotated[str, typer.Option(help="Version of the application.")] = "1.0.0",
    code: Annotated[
        str | None, typer.Option(help="Measurement of the application, sha256:HEX or sha512:HEX. Default: of its name.")
    ] = None,
    bootloader: Annotated[
        str | None, typer.Option(help="Measurement of the bootloader, of the same algorithm.")
    ] = None,
    authority: Annotated[
        str | None, typer.Option(help="Authority hash, hex. Default: of the words 'demo authority'.")
    ] = None,
    secure_version: Annotated[int, typer.Option(min=0, max=65535, help="Security version of the application.")] = 0,
    boot_count: Annotated[int, typer.Option(min=0, help="Boot counter.")] = 1,
    boot_seed: Annotated[str | None, typer.Option(help="Boot seed, 16 bytes in hex. Default: random.")] = None,
    mode: Annotated[int, typer.Option(min=0, max=3, help="DICE mode of both layers.")] = 1,
    form: Annotated[CertificateForm, typer.Option(help="Form of the certificates.")] = CertificateForm.CBOR,
    as_json: AsJson = False,
) -> None:
    """Answer a nonce as a device with this key would: chain and EAT. Keys of the layers depend on key and measurements.

    --json also says what a policy must name to accept it.
    """
    uds = private_key(key, "--key")
    app_hash = measurement(code, "--code").value if code else hashlib.sha512(f"{name} {version}".encode()).digest()
    kind = {32: hashlib.sha256, 48: hashlib.sha384, 64: hashlib.sha512}[len(app_hash)]
    boot_hash = measurement(bootloader, "--bootloader").value if bootloader else kind(b"demo bootloader").digest()
    boss = from_hex(authority, "--authority") if authority else kind(b"demo authority").digest()
    seed = from_hex(boot_seed, "--boot-seed") if boot_seed else secrets.token_bytes(16)
    if not len(app_hash) == len(boot_hash) == len(boss):
        raise typer.BadParameter("--code, --bootloader and --authority must have hashes of one length")
    if len(seed) != 16:
        raise typer.BadParameter("--boot-seed wants 16 bytes in hex")
    asked = from_hex(nonce, "--nonce")
    if not 8 <= len(asked) <= 64:
        raise typer.BadParameter(f"--nonce has {len(asked)} bytes, a nonce has 8 to 64")
    if not 0 < len(name) <= 32 or not name.isprintable():
        raise typer.BadParameter("--name wants 1 to 32 printable characters")
    config = device.application_config(
        project_name=name,
        secure_version=secure_version,
        partition_table=hashlib.sha256(b"demo table").digest(),
        boot_id=bytes(16),
        slot=0x10,
        security_efuses=_EFUSES[device.Mode(mode)],
    )
    layers = (
        device.Layer(boot_hash, device.bootloader_config(), boss, mode),
        device.Layer(app_hash, config, boss, mode),
    )
    signers = [uds, *(_layer_key(uds, layer) for layer in layers)]
    certify = device.x509_certificate if form is CertificateForm.X509 else device.certificate
    chain = [certify(signers[n], signers[n + 1].public_key(), layers[n]) for n in range(2)]
    token = device.eat(
        device.eat_claims(
            nonce=asked,
            ueid=keys.ueid(uds.public_key()),
            oemid=bytes(16),
            hwmodel=b"demo",
            debug_status=3,
            boot_count=boot_count,
            boot_seed=seed,
            name=name,
            version=version,
            slot_state=2,
            efuse_secure_version=0,
            fence=0,
        ),
        signers[2],
    )
    made = device.evidence(keys.dice_id(uds.public_key()), chain, token)
    if out is not None:
        _write(out, made)
    content = {
        "evidence": base64url(made),
        "bytes": len(made),
        "application": f"{_named(app_hash)}:{app_hash.hex()}",
        "bootloader": f"{_named(boot_hash)}:{boot_hash.hex()}",
        "authority": boss.hex(),
    }
    if as_json or out is not None:
        json_or(as_json, content, lambda: typer.echo(f"{len(made)} bytes"))
    else:
        _write_stdout(made)


@app.command(name="succession")
@verb
def mint_succession(
    key: Annotated[Path, typer.Option(help="The key that is followed: private, PEM.")],
    successor: Annotated[str, typer.Option(help="Public key that follows: a file (PEM or COSE_Key), or hex.")],
    kind: Annotated[OwnerKind, typer.Option(help="What both keys are for.")],
    generation: Annotated[int, typer.Option(min=1, help="1 for the first succession of this kind, then one more.")],
    out: Annotated[Path, typer.Option(help="File for the statement; `flashjob device owner-key` delivers it.")],
    as_json: AsJson = False,
) -> None:
    """Let an owner's key name the key that follows it on every device that holds the old one."""
    old, new = private_key(key, "--key"), public_key(successor, "--successor")
    made = succession.mint(succession.Kind[kind.name], new, generation, old)
    _write(out, made)
    ids = {"from": keys.key_id(old.public_key()).hex(), "to": keys.key_id(new).hex()}
    content = {"kind": kind.value, "generation": generation, **ids, "bytes": len(made)}
    json_or(as_json, content, lambda: typer.echo(f"{kind} key {ids['from']} is followed by {ids['to']}: {out}"))


def _random(alg: Alg) -> PrivateKey:
    if alg is Alg.EDDSA:
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP384R1() if alg is Alg.ES384 else ec.SECP256R1())


def _layer_key(uds: PrivateKey, layer: device.Layer) -> PrivateKey:
    """A key for a layer that depends on the UDS key and what was measured, as of a device whose secret is that key."""
    cdi = device.next_cdi(hashlib.sha256(keys.private_to_pem(uds)).digest(), layer)
    return device.signing_key(cdi, keys.alg_of(uds))


def _named(digest: bytes) -> str:
    return {32: "sha256", 48: "sha384", 64: "sha512"}[len(digest)]


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise typer.BadParameter(f"--out {path}: {error.strerror}") from error


def _write_stdout(data: bytes, *, binary: bool = True) -> None:
    if binary and sys.stdout.isatty():
        raise typer.BadParameter(
            "this is binary, and standard output is a terminal: redirect it to a file or a program"
        )
    sys.stdout.buffer.write(data)


def _write_private(path: Path, pem: bytes) -> None:
    """0600, and never over a key that exists."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise typer.BadParameter(f"--out {path}: {error.strerror}") from error
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
