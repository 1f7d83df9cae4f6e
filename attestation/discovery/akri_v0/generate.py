# SPDX-License-Identifier: Apache-2.0
"""Generate the Python modules of discovery.proto: `python -m attestation.discovery.akri_v0.generate`."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

PACKAGE = "attestation/discovery/akri_v0"
MODULES = ("discovery_pb2.py", "discovery_pb2.pyi", "discovery_pb2_grpc.py")
_HEADER = "# SPDX-License-Identifier: Apache-2.0\n# mypy: ignore-errors\n"


def generate(target: Path) -> int:
    """Write the generated modules below `target`, as it would be the directory that holds the package `attestation`.

    Returns:
        protoc's exit code.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]  # only developers have it

    root = Path(str(files("attestation"))).parent
    includes = [f"-I{root}", f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}"]
    code = int(protoc.main(["protoc", *includes, str(root / PACKAGE / "discovery.proto")]))
    for module in MODULES if code == 0 else ():
        path = target / PACKAGE / module
        path.write_text(_HEADER + path.read_text(encoding="utf-8"), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(generate(Path(str(files("attestation"))).parent))
