# SPDX-License-Identifier: Apache-2.0
"""Install what FlashJob needs in a control plane: the namespace, CRDs (ours and Akri's), accounts and rights."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from flashjob.errors import FlashJobError

from .launcher import ControlPlane

SYSTEM_NAMESPACE: Final = "flashjob-system"
_MANAGER: Final = "flashjob-sandbox"
_JOB_NAMESPACE: Final = "job-namespace.yaml"


def _manifests(kind: str) -> list[Path]:
    """The manifests shipped with the package, or those of the source tree it runs from."""
    package = Path(str(files("flashjob")))
    for directory in (package / "_install" / kind, package.parent / ("crds" if kind == "crds" else f"deploy/{kind}")):
        found = sorted(directory.glob("*.yaml"))
        if found:
            return found
    raise FlashJobError(
        "ManifestsMissing",
        f"no {kind} manifests in {package / '_install' / kind} nor in the source tree",
        "install a complete package, or run from a source tree",
    )


def apply_manifests(plane: ControlPlane, paths: list[Path], *, namespace: str | None = None) -> None:
    """Server-side apply of files, as admin; raises `KubectlFailed` with kubectl's message."""
    arguments = [argument for path in paths for argument in ("-f", str(path))]
    where = ["-n", namespace] if namespace else []
    plane.kubectl("apply", "--server-side", "--force-conflicts", f"--field-manager={_MANAGER}", *where, *arguments)


def install(plane: ControlPlane, *, job_namespaces: tuple[str, ...] = ("default",)) -> None:
    """Install everything and return when the CRDs are served.

    Args:
        plane: a running control plane.
        job_namespaces: namespaces that shall hold FlashJobs; created if needed.
    """
    sandbox = Path(str(files("flashjob.sandbox")))
    crds = [*_manifests("crds"), sandbox / "akri" / "crds.yaml"]
    rbac = _manifests("rbac")
    everywhere = [path for path in rbac if path.name != _JOB_NAMESPACE]
    everywhere.sort(key=lambda path: path.name != "namespace.yaml")
    apply_manifests(plane, [*everywhere, *crds, sandbox / "rbac.yaml"])
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *(a for p in crds for a in ("-f", str(p))))
    for namespace in job_namespaces:
        apply_job_namespace(plane, namespace)


def apply_job_namespace(plane: ControlPlane, namespace: str) -> None:
    """Create the namespace if needed, and what it needs to hold FlashJobs."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    path = f"/api/v1/namespaces/{namespace}?fieldManager={_MANAGER}"
    plane.request("PATCH", path, body, "application/apply-patch+yaml")
    apply_manifests(plane, [path for path in _manifests("rbac") if path.name == _JOB_NAMESPACE], namespace=namespace)
