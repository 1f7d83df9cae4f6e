# SPDX-License-Identifier: Apache-2.0
"""A program that signs: the plain way to a smart card, a key management service or an HSM.

The protocol, version 1. The program is started without a shell, twice for the first signature and once for each more:

    PROGRAM ARGS... public-key    prints the public key, PEM (BEGIN PUBLIC KEY), to standard output.
    PROGRAM ARGS... sign HASH     reads what is to be signed from standard input until it ends, and prints the bare
                                  signature to standard output: DER for ECDSA, 64 bytes for Ed25519, PKCS #1 v1.5 for
                                  RSA. HASH says which hash to use: sha256, sha384, sha512, or none for Ed25519.

It ends with 0; anything else is a refusal, whose standard error is shown. Each call has `TIME_LIMIT_SECONDS`, time
enough to touch a token. What it returns is verified before it is used, so a wrong key is found here and not on a device.
"""

import os
import shlex
import signal
import subprocess
from dataclasses import dataclass
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.signing.keys import VerifyKey, hash_name, load_trusted_key, signature_holds

TIME_LIMIT_SECONDS: Final = 60.0
MAX_OUTPUT_BYTES: Final = 16 * 1024
SHOWN_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True)
class ExecSigner:
    """A `Signer` that asks a program.

    Attributes:
        command: program and its own arguments.
        public_key: as the program told.
        time_limit: seconds for each call.
    """

    command: tuple[str, ...]
    public_key: VerifyKey
    time_limit: float = TIME_LIMIT_SECONDS

    @classmethod
    def open(cls, command_line: str, time_limit: float = TIME_LIMIT_SECONDS) -> "ExecSigner":
        """Ask a program for its public key.

        Args:
            command_line: program and arguments, quoted as for a shell; no shell sees it.
            time_limit: seconds for each call.

        Raises:
            PipelineError: KeyMalformed, SignerFailed.
        """
        try:
            command = tuple(shlex.split(command_line))
        except ValueError as error:
            raise _failed(command_line, f"its quotes do not match ({error})") from None
        if not command:
            raise _failed("exec:", "no program is named")
        pem = _run((*command, "public-key"), b"", time_limit)
        return cls(command, load_trusted_key(pem, f"of {command[0]}").key, time_limit)

    def sign(self, data: bytes, *, curve_hash: bool) -> bytes:
        """See Signer.

        Raises:
            PipelineError: SignerFailed.
        """
        name = hash_name(self.public_key, curve_hash=curve_hash)
        signature = _run((*self.command, "sign", name), data, self.time_limit)
        if not signature_holds(self.public_key, signature, data):
            raise _failed(self.command[0], f"what it returned ({len(signature)} bytes) is no signature of its own key")
        return signature


def _run(command: tuple[str, ...], data: bytes, time_limit: float) -> bytes:
    """Standard output of one call. Whatever ends the call early, the program and its children end too."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as error:
        raise _failed(command[0], f"it cannot be started ({error.strerror or error})") from error
    with process:
        try:
            output, said = process.communicate(data, timeout=time_limit)
        except subprocess.TimeoutExpired:
            raise _failed(command[0], f"it did not end within {time_limit:g} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    words = said.decode(errors="replace").strip()[-SHOWN_CHARACTERS:]
    shown = "".join(c if c.isprintable() else " " for c in words)
    if process.returncode != 0:
        raise _failed(command[0], f"it ended with {process.returncode}" + (f" and said: {shown}" if shown else ""))
    if not output or len(output) > MAX_OUTPUT_BYTES:
        raise _failed(command[0], f"it printed {len(output)} bytes" + (f" and said: {shown}" if shown else ""))
    return output


def _failed(program: str, problem: str) -> PipelineError:
    return PipelineError(
        Reason.SignerFailed,
        f"The signing program {program} gave no signature: {problem}.",
        "Run it by hand: `PROGRAM public-key`, then `PROGRAM sign sha256` with something on standard input.",
    )
