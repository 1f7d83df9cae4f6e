# SPDX-License-Identifier: Apache-2.0
"""Carries a plan out on real silicon: each step is one run of espefuse, a separate program.

Rules:

1. Nothing is burnt unless the caller says which chip it means, by its eFuse MAC, and that is the chip on the line.
2. The steps are taken in their order; the first that fails ends it, and what was burnt before is said.
3. The secret is drawn here, exists as a file that only this user can read while it is burnt, and never leaves.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from attestation.keys import Alg
from attestation.policy import RootOfTrust
from firmware_pipeline.esp.chips import Chip
from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import problem
from flashjob.provisioning.plan import Step, command, plan
from flashjob.provisioning.secret import KEY_SIZE, Born, born, uds
from flashjob.wire.esptool_lines import ChipEvent
from flashjob.wire.reasons import Reason


def check_mac(seen: ChipEvent, typed: str) -> None:
    """Rule 1. Raises FlashJobError WrongDevice."""
    if not seen.mac or typed.strip().lower() != seen.mac:
        raise problem(
            Reason.WRONG_DEVICE, f"the chip's eFuse MAC is {seen.mac or 'not told'}, typed was {typed.strip()}"
        )


async def burn(
    chip: Chip,
    seen: ChipEvent,
    port: str,
    *,
    typed_mac: str,
    digest: Path,
    batch: str,
    folder: Path,
    said: Callable[[str], None],
    reset: str = "auto",
) -> Born:
    """Burn a secret and its protections for SignedBoot into the chip on `port`.

    Args:
        chip, seen: the model, and what its loader shows.
        typed_mac: the eFuse MAC, as a person typed it.
        digest: file with the SHA-256 of the secure boot public key.
        batch: that the device belongs to.
        folder: an existing directory for the secret while it is burnt; of this user alone.
        said: called with each step before it is taken.
        reset: the way into the loader, of those in `plan.RESETS`.

    Raises:
        FlashJobError: WrongDevice, or WriteFailed with what was burnt before.
    """
    check_mac(seen, typed_mac)
    efuse_key = secrets.token_bytes(KEY_SIZE)
    file = folder / "secret.bin"
    file.touch(mode=0o600)
    file.write_bytes(efuse_key)
    try:
        steps = plan(chip, seen, RootOfTrust.SIGNED_BOOT, secret=str(file), digest=str(digest))
        await carry_out(chip, port, [step for step in steps if step.arguments and not step.done], said, reset=reset)
    finally:
        file.unlink()
    return born(uds(efuse_key), batch, alg=Alg.ES256, hwmodel=chip.target)


async def carry_out(
    chip: Chip, port: str, steps: list[Step], said: Callable[[str], None], *target: str, reset: str = "auto"
) -> None:
    """Rule 2.

    Args:
        chip, port: whom it is done to.
        steps: in their order.
        said: called with each step before it is taken.
        target: options that take the place of the port, as espefuse's virtual eFuses.
        reset: the way into the loader, of those in `plan.RESETS`.
    """
    program = shutil.which("espefuse", path=str(Path(sys.executable).parent)) or shutil.which("espefuse")
    if program is None:
        raise FlashJobError(Reason.WRITE_FAILED, "there is no program espefuse", "pip install 'flashjob[serial]'")
    done: list[str] = []
    for step in steps:
        said(step.what)
        words = list(command(chip, port, step, reset)[1:])
        if target:
            at = words.index("--port")
            words[at : at + 2] = target
        process = await asyncio.create_subprocess_exec(
            program, "--do-not-confirm", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            lines = (line.strip("╭╮╰╯│─ ") for line in output.decode(errors="replace").splitlines())
            before = ", ".join(done) or "nothing"
            raise FlashJobError(
                Reason.WRITE_FAILED,
                f"{step.what}: espefuse ended with {process.returncode}: {' '.join(filter(None, lines))[-300:]}. Burnt before: {before}",
                "examine the chip with `espefuse summary`; what is burnt stays burnt",
            )
        done.append(step.what)
