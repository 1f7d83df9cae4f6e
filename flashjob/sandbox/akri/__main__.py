# SPDX-License-Identifier: Apache-2.0
"""`python -m flashjob.sandbox.akri --kubeconfig FILE --node NODE --directory DIR`"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from ..client import ApiClient
from ..daemon import run_until_terminated
from .agent import AkriAgent


def main(arguments: list[str]) -> int:
    """Run one node's agent until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="flashjob.sandbox.akri", description="Stands in for one node's Akri agent.")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--directory", type=Path, required=True, help="where the registration socket is made")
    options = parser.parse_args(arguments)

    async def work() -> None:
        async with ApiClient.from_kubeconfig(options.kubeconfig) as client:
            await AkriAgent(client, options.node, options.directory.resolve()).run()

    return asyncio.run(run_until_terminated(work()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
