# SPDX-License-Identifier: Apache-2.0
"""`flashjob device`: look at a device, provision it, enroll it, and see whether it keeps to the protocol."""

import typer

from .conformance import conformance
from .enroll import enroll
from .info import info
from .owner_key import owner_key
from .provision import provision

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def device() -> None:
    """Look at devices, provision and enroll them."""


for _command in (info, provision, enroll, conformance):
    app.command()(_command)
app.command("owner-key")(owner_key)
