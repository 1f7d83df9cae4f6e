# SPDX-License-Identifier: Apache-2.0
"""The Go programs the sandbox compiles: what they are, what their build needs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from .toolchain import GIB, GoProgram

KUBERNETES_VERSION: Final = "1.36.2"
_SANDBOX: Final = Path(str(files("flashjob.sandbox")))


def _kubernetes_ldflags(version: str) -> str:
    """Linker flags that make the programs report the version their modules have."""
    major, minor, _patch = version.split(".")
    known = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    return "-s -w " + " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in known.items())


CONTROL_PLANE: Final = GoProgram(
    name="controlplane",
    about="compiling etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and kubectl",
    source=_SANDBOX / "controlplane",
    ldflags=_kubernetes_ldflags(KUBERNETES_VERSION),
    disk_bytes=6 * GIB,
    memory_bytes=3 * GIB,
)
REGISTRY: Final = GoProgram(
    name="registry",
    about="compiling the OCI registry",
    source=_SANDBOX / "registry_src",
    disk_bytes=2 * GIB,
    memory_bytes=1 * GIB,
)
