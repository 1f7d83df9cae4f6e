# SPDX-License-Identifier: Apache-2.0
"""`python -m flashjob.sandbox.node --kubeconfig FILE --name NODE --root DIR [--entry-point MODULE]... [--label K=V]...`"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from ..client import ApiClient
from ..daemon import run_until_terminated
from .agent import NodeAgent, NodeConfig
from .logs import ServingFiles

DEFAULT_ENTRY_POINT = "flashjob.flasher"


def main(arguments: list[str]) -> int:
    """Run one node until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="flashjob.sandbox.node", description="Runs the pods of one node as processes."
    )
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--name", required=True, help="name and hostname label of the node")
    parser.add_argument("--root", type=Path, required=True, help="where pods and logs are kept")
    parser.add_argument("--entry-point", action="append", default=[], help="module that pods may run (repeatable)")
    parser.add_argument("--label", action="append", default=[], help="further node label KEY=VALUE (repeatable)")
    parser.add_argument("--max-pods", type=int, default=110)
    serving = parser.add_argument_group("kubectl logs", "PEM files; all three or none")
    for name in ("--serving-certificate", "--serving-key", "--client-ca"):
        serving.add_argument(name, type=Path)
    options = parser.parse_args(arguments)
    files = (options.serving_certificate, options.serving_key, options.client_ca)
    config = NodeConfig(
        name=options.name,
        root=options.root.resolve(),
        entry_points=options.entry_point or [DEFAULT_ENTRY_POINT],
        labels=dict(label.split("=", 1) for label in options.label),
        max_pods=options.max_pods,
        serving=ServingFiles(*files) if all(files) else None,
    )

    async def work() -> None:
        async with ApiClient.from_kubeconfig(options.kubeconfig) as client:
            await NodeAgent(client, config, os.environ).run()

    return asyncio.run(run_until_terminated(work()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
