# SPDX-License-Identifier: Apache-2.0
"""``attest``: judge evidence on the command line, against a trust directory and without a cluster.

Exit codes: 0 proven, or done; 1 rejected, not allowed, or different; 2 wrong usage; 3 accepted, but below the root of
trust that the policy demands; 4 trust directory, policy or records cannot be used; 5 the device cannot be reached; 130
interrupted (143: by SIGTERM). Results go to standard output, everything else to standard error.
"""

import signal
import sys

import typer

from attestation.cli import ask, enroll, explain, mint, policy, reappraise, serve, verify
from attestation.cli.common import Exit
from attestation.cli.usage import run

__all__ = ["Exit", "app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

# A verb is one line here, and one module.
app.command("verify")(verify.command)
app.command("explain")(explain.command)
app.command("ask")(ask.command)
app.add_typer(enroll.app, name="enroll")
app.add_typer(policy.app, name="policy")
app.command("reappraise")(reappraise.command)
app.command("serve")(serve.command)
app.add_typer(mint.app, name="mint")


def main() -> None:
    """Entry point. SIGTERM, as a cancelled CI job sends it, cleans up like Ctrl-C; neither shows a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(run(app, "attest"))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
