# SPDX-License-Identifier: Apache-2.0
"""Which collections of the API server we use, and their paths."""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

Obj = dict[str, Any]
"""An object as the API server gives it: decoded JSON, never a typed model."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One collection: group, version and plural make its path, kind names its objects.

    Args:
        group: API group; "" is the core group.
        version: version in the group.
        plural: name of the collection in paths.
        kind: kind of its objects.
        namespaced: whether its objects live in namespaces.
        status: whether it has a status subresource.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False

    @property
    def api_version(self) -> str:
        """As objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of a collection, an object or a subresource; `namespace` "" means all namespaces."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


_OURS: Final = "flashjob.dev"

FLASHJOBS: Final = Resource(_OURS, "v1alpha1", "flashjobs", "FlashJob", status=True)
FLASHTASKS: Final = Resource(_OURS, "v1alpha1", "flashtasks", "FlashTask", status=True)
DEVICES: Final = Resource(_OURS, "v1alpha1", "devices", "Device", status=True)
ATTESTATION_POLICIES: Final = Resource(_OURS, "v1alpha1", "attestationpolicies", "AttestationPolicy")

INSTANCES: Final = Resource("akri.sh", "v0", "instances", "Instance")
CONFIGURATIONS: Final = Resource("akri.sh", "v0", "configurations", "Configuration")

PODS: Final = Resource("", "v1", "pods", "Pod", status=True)
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
EVENTS: Final = Resource("", "v1", "events", "Event")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
CRDS: Final = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
    status=True,
)
