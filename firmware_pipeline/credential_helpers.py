# SPDX-License-Identifier: Apache-2.0
"""Ask a docker credential helper: an external program that keeps logins in the system's key store.

Rules:
    1. The program is `docker-credential-NAME` on PATH; NAME holds lower-case letters, digits and hyphens only. No shell.
    2. It gets the host on standard input and nothing else; what it prints is never shown, but for its refusal.
    3. It has 30 seconds; of its answer 64 KiB are read.
    4. "Not found" means that it has no login for this host: anonymous, no error.

Source: the docker-credential-helpers protocol (`get`: server URL in, JSON with ServerURL, Username, Secret out; the user
name `<token>` marks an identity token).
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any, Final

from firmware_pipeline.errors import PipelineError, Reason

SECONDS: Final = 30.0
MAX_ANSWER_BYTES: Final = 65536
TOKEN_USER: Final = "<token>"
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_NOT_FOUND: Final = "credentials not found"


def ask_helper(
    name: str, host: str, environment: Mapping[str, str], *, seconds: float = SECONDS
) -> tuple[str, str] | None:
    """The login that a helper keeps for a host.

    Args:
        name: as in `credHelpers` or `credsStore`.
        host: registry host with optional port.
        environment: of the program; PATH says where it is looked for.
        seconds: its time limit.

    Returns:
        (user name or `TOKEN_USER`, password or token), or None when it has none.

    Raises:
        PipelineError: CredentialsMalformed.
    """
    program = f"docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise _failed(f"{name[:100]!r} is not the name of a credential helper")
    path = shutil.which(program, path=environment.get("PATH", ""))
    if path is None:
        raise _failed(f"the configuration names the credential helper {program}, which is not on PATH")
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                [path, "get"],
                input=host.encode(),
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _failed(f"{program} did not answer within {seconds:g} s") from None
        except OSError as error:
            raise _failed(f"{program} cannot be run: {error.strerror or error}") from error
        output.seek(0)
        raw = output.read(MAX_ANSWER_BYTES + 1)
    if done.returncode != 0:
        words = "".join(c for c in raw[:200].decode(errors="replace").strip() if c.isprintable())
        if words.startswith(_NOT_FOUND):
            return None
        raise _failed(f"{program} failed with {done.returncode} ({words or 'it said nothing'})")
    return _read(raw, program)


def _read(raw: bytes, program: str) -> tuple[str, str]:
    try:
        answer: Any = json.loads(raw) if len(raw) <= MAX_ANSWER_BYTES else None
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError):
        raise _failed(f"{program} answered something that is no login") from None
    if not isinstance(user, str) or not isinstance(secret, str) or not user:
        raise _failed(f"{program} answered something that is no login")
    return user, secret


def _failed(problem: str) -> PipelineError:
    return PipelineError(
        Reason.CredentialsMalformed,
        f"No registry login could be had: {problem}.",
        "Repair the helper, or pass --username and --password-stdin, which come first.",
    )
