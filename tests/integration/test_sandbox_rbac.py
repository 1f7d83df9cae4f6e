# SPDX-License-Identifier: Apache-2.0
"""What each identity may do, asked of the real API server: the rights that deploy/rbac ships, and no others."""

from __future__ import annotations

import pytest

from flashjob.sandbox.apply import SYSTEM_NAMESPACE
from flashjob.sandbox.main import Sandbox

pytestmark = pytest.mark.integration
FLASH = ("flashjobs", "flashtasks", "devices", "attestationpolicies")
JOBS = "default"  # a namespace that holds FlashJobs
OTHER = "kube-public"  # one that does not


def may(
    sandbox: Sandbox, account: str, verb: str, resource: str, namespace: str = JOBS, owner: str = SYSTEM_NAMESPACE
) -> bool:
    """Whether `account` may; `resource` is group/resource or group/resource/subresource."""
    group, name, *sub = resource.split("/")
    attributes = {"group": group, "resource": name, "verb": verb, "namespace": namespace}
    if sub:
        attributes["subresource"] = sub[0]
    spec = {
        "user": f"system:serviceaccount:{owner}:{account}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{owner}", "system:authenticated"],
        "resourceAttributes": attributes,
    }
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    answer = sandbox.plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


EVERYTHING = [
    *((verb, f"flashjob.dev/{kind}") for kind in FLASH for verb in ("get", "list", "create", "patch", "delete")),
    *(
        (verb, f"/{kind}")
        for kind in ("pods", "secrets", "configmaps", "events")
        for verb in ("get", "list", "create", "delete")
    ),
    ("create", "/serviceaccounts/token"),
    ("get", "coordination.k8s.io/leases"),
    ("list", "akri.sh/instances"),
]


@pytest.mark.parametrize(("account", "owner"), [("flashjob-flasher", JOBS), ("flashjob-viewer", JOBS)])
def test_flashing_pods_and_viewers_may_do_nothing(sandbox: Sandbox, account: str, owner: str) -> None:
    allowed = [what for what in EVERYTHING if may(sandbox, account, *what, owner=owner)]
    assert allowed == []


def test_operator(sandbox: Sandbox) -> None:
    def operator(verb: str, resource: str, namespace: str = JOBS) -> bool:
        return may(sandbox, "flashjob-operator", verb, resource, namespace)

    assert all(operator("watch", f"flashjob.dev/{kind}") for kind in FLASH)
    assert operator("create", "flashjob.dev/flashtasks")
    assert all(operator("patch", f"flashjob.dev/{kind}/status") for kind in ("flashjobs", "flashtasks", "devices"))
    assert not any(operator(verb, "flashjob.dev/devices") for verb in ("create", "patch", "delete"))
    assert not any(operator(verb, "flashjob.dev/attestationpolicies") for verb in ("create", "patch", "delete"))
    assert not any(operator(verb, "flashjob.dev/flashtasks") for verb in ("patch", "update", "delete"))
    assert operator("create", "/pods")
    assert operator("delete", "/pods")
    assert not operator("create", "/pods", OTHER)
    assert operator("get", "/secrets")
    assert not any(operator(verb, "/secrets") for verb in ("list", "watch", "create", "patch", "delete"))
    assert not operator("get", "/secrets", OTHER)
    assert not operator("get", "/secrets", SYSTEM_NAMESPACE)
    assert operator("update", "coordination.k8s.io/leases", SYSTEM_NAMESPACE)
    assert not operator("update", "coordination.k8s.io/leases")
    assert operator("list", "akri.sh/instances")
    assert not operator("patch", "akri.sh/instances")
    assert not operator("create", "/serviceaccounts/token")


def test_gateway(sandbox: Sandbox) -> None:
    def gateway(verb: str, resource: str, namespace: str = JOBS) -> bool:
        return may(sandbox, "flashjob-gateway", verb, resource, namespace)

    assert all(gateway("watch", f"flashjob.dev/{kind}") for kind in FLASH)
    assert gateway("patch", "flashjob.dev/flashtasks/status")
    assert not any(gateway(verb, "flashjob.dev/flashtasks") for verb in ("create", "patch", "delete"))
    assert not gateway("patch", "flashjob.dev/devices/status")
    assert gateway("list", "/pods")
    assert gateway("get", "coordination.k8s.io/leases", SYSTEM_NAMESPACE)
    assert not any(gateway("get", "/secrets", namespace) for namespace in (JOBS, SYSTEM_NAMESPACE, OTHER))


def test_discovery_handler(sandbox: Sandbox) -> None:
    def handler(verb: str, resource: str, namespace: str = JOBS) -> bool:
        return may(sandbox, "flashjob-discovery-handler", verb, resource, namespace)

    assert all(handler("watch", f"flashjob.dev/{kind}") for kind in ("devices", "attestationpolicies", "flashtasks"))
    assert handler("patch", "flashjob.dev/devices/status")
    assert handler("patch", "akri.sh/configurations")
    assert not any(handler(verb, "akri.sh/instances") for verb in ("create", "patch", "delete"))
    assert not handler("patch", "flashjob.dev/flashtasks/status")
    assert not handler("get", "/secrets", SYSTEM_NAMESPACE)
    assert not handler("get", "/pods")


def test_node_agent(sandbox: Sandbox) -> None:
    assert may(sandbox, "flashjob-node-agent", "patch", "/pods/status")
    assert not may(sandbox, "flashjob-node-agent", "create", "/pods")
    assert not may(sandbox, "flashjob-node-agent", "list", "/secrets")
    assert not any(may(sandbox, "flashjob-node-agent", "get", f"flashjob.dev/{kind}") for kind in FLASH)
