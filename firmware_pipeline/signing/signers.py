# SPDX-License-Identifier: Apache-2.0
"""Signers by name: a key file, a program, or a plug-in for a key management service.

What `--sign` may say:
    FILE, file:FILE     PEM private key (PKCS #8), encrypted or not
    exec:PROGRAM ARGS   a program that signs; see `exec_signer`
    SCHEME:REST         a plug-in: an entry point of the group `flashjob.signers` whose name is the scheme. It is called
                        with REST and returns a `Signer`; it may raise PipelineError.

A scheme has at least two letters, so that a path with a drive letter is a path; `./a:b` is always a path.
"""

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.signing.exec_signer import ExecSigner
from firmware_pipeline.signing.keys import Signer, load_signer
from firmware_pipeline.store import storage_failed

GROUP: Final = "flashjob.signers"
MAX_KEY_FILE_BYTES: Final = 64 * 1024
_SCHEME = re.compile(r"([a-z][a-z0-9+-]+):(.*)", re.DOTALL)


def open_signer(text: str, password: bytes | None = None) -> Signer:
    """The signer that `text` names.

    Args:
        text: see the module.
        password: of an encrypted key file.

    Raises:
        PipelineError: KeyMalformed for a key or scheme that cannot be used; SignerFailed; StorageFailed.
    """
    found = _SCHEME.fullmatch(text)
    scheme, rest = (found[1], found[2]) if found else ("file", text)
    if scheme == "file":
        return load_signer(_read(Path(rest)), rest, password)
    if scheme == "exec":
        return ExecSigner.open(rest)
    return _plug_in(scheme)(rest)


def _plug_in(scheme: str) -> Callable[[str], Signer]:
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if scheme not in known:
        raise PipelineError(
            Reason.KeyMalformed,
            f"No signer is installed for {scheme}: (there are: {', '.join(sorted({'exec', 'file', *known}))}).",
            f"Install the plug-in for it, or write ./{scheme}:... if this is the name of a file.",
        )
    try:
        factory: Callable[[str], Signer] = known[scheme].load()
    except (ImportError, AttributeError) as error:
        raise PipelineError(
            Reason.SignerFailed,
            f"The signer plug-in {scheme} ({known[scheme].value}) cannot be loaded: {error}.",
            "Install it again, in the environment that firmware-pipeline runs in.",
        ) from error
    return factory


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise storage_failed(path, error) from error
