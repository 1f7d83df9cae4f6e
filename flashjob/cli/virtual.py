# SPDX-License-Identifier: Apache-2.0
"""`flashjob virtual`: a fleet of virtual devices in the foreground, from a description in JSON."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from firmware_pipeline.errors import PipelineError
from flashjob.errors import FlashJobError
from flashjob.virtual.fleet import FleetSpec, run

app = typer.Typer(add_completion=False)


@app.command()
def virtual(
    spec: Annotated[Path, typer.Argument(help="What to run: see docs/virtual-devices.md.", metavar="SPEC.json")],
) -> None:
    """Run virtual devices until Ctrl-C.

    Prints one JSON line when all of them run: ports, addresses, ids and public keys.
    """
    try:
        asyncio.run(run(FleetSpec.model_validate_json(spec.read_bytes())))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)
        )
        raise FlashJobError(
            "SpecInvalid", f"{spec}: {wrong}", "correct these fields: docs/virtual-devices.md"
        ) from error
    except OSError as error:
        raise FlashJobError(
            "SpecInvalid",
            f"{spec}: {error}",
            "name a file that can be read, and ports that no other program (another `flashjob virtual`?) has",
        ) from error
    except (ValueError, PipelineError) as error:
        raise FlashJobError(
            "SpecInvalid", f"{spec}: {error}", "correct the file; the message names the field"
        ) from error
