# SPDX-License-Identifier: Apache-2.0
"""Kubeconfig files: one cluster, one user, one context; written so that only their owner can read them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from .pki import write_private

CONTEXT = "flashjob-sandbox"


def write_kubeconfig(
    path: Path,
    *,
    url: str,
    ca: Path,
    token: str | None = None,
    client_certificate: tuple[Path, Path] | None = None,
    namespace: str = "default",
) -> Path:
    """Write a kubeconfig that stands alone (CA and credentials inline) and return its path.

    Args:
        path: the file; its directory is created.
        url: the API server.
        ca: PEM file of the CA of its serving certificate.
        token: bearer token of the user, or
        client_certificate: paths of the user's certificate and key.
        namespace: the context's default namespace.
    """
    user: dict[str, Any] = {}
    if token is not None:
        user["token"] = token
    if client_certificate is not None:
        user["client-certificate-data"] = _base64(client_certificate[0])
        user["client-key-data"] = _base64(client_certificate[1])
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": {"server": url, "certificate-authority-data": _base64(ca)}}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": "user", "namespace": namespace}}],
        "current-context": CONTEXT,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, json.dumps(config, indent=1).encode())  # JSON is YAML
    return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
