# SPDX-License-Identifier: Apache-2.0
"""`keygen`: a key pair in two files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from typer import Argument, Option

from firmware_pipeline.cli.running import err, key_password, verb
from firmware_pipeline.signing.keys import PASSWORD_VARIABLE, SignerKey, private_pem, public_pem
from firmware_pipeline.store import storage_failed


@verb
def command(
    name: Annotated[Path, Argument(help="Writes NAME.key (private, mode 0600) and NAME.pub.")],
    kind: Annotated[str, Option("--type", help="p256, p384 or ed25519; release keys: p256 or ed25519.")] = "p256",
    encrypt: Annotated[
        bool, Option("--encrypt", help=f"Encrypt the private key; the password is {PASSWORD_VARIABLE}.")
    ] = False,
) -> None:
    """Make a key pair, for signing artifacts or for releases. Existing files are never replaced."""
    password = key_password() if encrypt else None
    if encrypt and password is None:
        raise typer.BadParameter(f"--encrypt needs the password in the environment variable {PASSWORD_VARIABLE}")
    makers: dict[str, Callable[[], SignerKey]] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    if kind not in makers:
        raise typer.BadParameter(f"--type is one of {', '.join(makers)}")
    key = makers[kind]()
    private, public = name.with_name(name.name + ".key"), name.with_name(name.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise storage_failed(path, FileExistsError(0, "it exists, and keys are never replaced"))
    for path, pem, mode in (
        (private, private_pem(key, password), 0o600),
        (public, public_pem(key.public_key()), 0o644),
    ):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(handle, "wb") as stream:
                stream.write(pem)
        except OSError as error:
            raise storage_failed(path, error) from error
    err(f"Keep {private} secret. Devices and policies trust {public}.")
    typer.echo(str(public))
