# SPDX-License-Identifier: Apache-2.0
"""Which cluster, and as whom: asked for by name, or the one this pod runs in; never because a variable happens to be set."""

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from flashjob.errors import FlashJobError

from .aio import AioKubeApi


async def configuration(kubeconfig: Path | None = None, context: str | None = None) -> Configuration:
    """Where the API server is and how to show who we are.

    Args:
        kubeconfig: a file; without it and without `context`, the pod's own ServiceAccount.
        context: a context of the file, or, without a file, of the user's own kubeconfig; None is the current one.

    Raises:
        FlashJobError: NoCluster.
    """
    made: Configuration = Configuration()
    try:
        if kubeconfig is None and context is None:
            load_incluster_config(client_configuration=made)
        else:
            if kubeconfig is not None and not isinstance(yaml.safe_load(kubeconfig.read_text(encoding="utf-8")), dict):
                raise ConfigException("it holds no mapping")
            # None is the user's own kubeconfig, and only where a context was asked for by name.
            await load_kube_config(
                config_file=str(kubeconfig) if kubeconfig else None, context=context, client_configuration=made
            )
    except (ConfigException, OSError, ValueError, yaml.YAMLError) as error:
        where = f"kubeconfig {kubeconfig or 'of this user'}" if kubeconfig or context else "this pod's ServiceAccount"
        raise FlashJobError(
            "NoCluster", f"{where}: {error}", "name a kubeconfig with --kubeconfig, or run inside a cluster"
        ) from error
    if _loopback(made.host):
        made.client_session_kwargs = {"trust_env": False}  # a proxy has no business with this machine's own ports
    return made


async def connect(kubeconfig: Path | None = None, context: str | None = None) -> AioKubeApi:
    """An API client of that cluster (see `configuration`); it is the caller's to close."""
    return AioKubeApi(await configuration(kubeconfig, context))


def own_namespace(default: str = "flashjob-system") -> str:
    """The namespace this pod runs in, or `default` outside a cluster."""
    path = Path(os.environ.get("FLASHJOB_NAMESPACE_FILE", "/var/run/secrets/kubernetes.io/serviceaccount/namespace"))
    try:
        return path.read_text(encoding="utf-8").strip() or default
    except FileNotFoundError:
        return default


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
