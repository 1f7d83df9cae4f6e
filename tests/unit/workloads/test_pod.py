# SPDX-License-Identifier: Apache-2.0
"""The flashing pod: what it may do, where it runs, what it is told."""

import json
from dataclasses import replace
from typing import Any

import pytest

from flashjob.api.flashjob import PodOverrides
from flashjob.errors import FlashJobError
from flashjob.wire import pod as wire
from flashjob.wire.pod import Assignment, Assignments, TransportKind
from flashjob.workloads.pod import Owner, Placement, PodSettings, build_pod
from tests.unit.planning.model import TARGET

SETTINGS = PodSettings(image="flasher:1", gateway_url="https://gateway:8443")
OWNER = Owner("porch", "job-uid", "porch")
PORT = Placement("ports-abc", "node1")


def assignments(transport: TransportKind = TransportKind.SERIAL, count: int = 1) -> Assignments:
    items = tuple(
        Assignment(task=f"porch-{n}", attempt=2, device="01" * 33, transport=transport, target=TARGET)
        for n in range(count)
    )
    return Assignments(namespace="farm", job="porch", items=items)


def build(
    what: Assignments | None = None, where: Placement = PORT, settings: PodSettings = SETTINGS, **more: Any
) -> dict[str, Any]:
    made = build_pod("porch-0-2", OWNER, what or assignments(), where, settings, deadline_seconds=900, **more)
    json.dumps(made)
    return made


def env(made: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e["value"] for e in made["spec"]["containers"][0]["env"]}


def test_it_can_do_nothing_at_the_api_server() -> None:
    spec = build()["spec"]
    assert spec["automountServiceAccountToken"] is False
    tokens = [v for v in spec["volumes"] if "projected" in v]
    (source,) = tokens[0]["projected"]["sources"]
    assert source["serviceAccountToken"] == {"audience": "flashjob-gateway", "expirationSeconds": 600, "path": "token"}


def test_it_passes_the_restricted_standard() -> None:
    spec = build()["spec"]
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {next(k for k in v if k != "name") for v in spec["volumes"]} <= {
        "projected",
        "configMap",
        "emptyDir",
        "secret",
    }


def test_it_never_restarts_and_ends() -> None:
    spec = build()["spec"]
    assert spec["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == 900


def test_serial_claims_its_port_and_network_claims_nothing() -> None:
    serial = build()["spec"]
    for kind in ("limits", "requests"):
        assert serial["containers"][0]["resources"][kind]["akri.sh/ports-abc"] == "1"
    assert serial["nodeSelector"] == {"kubernetes.io/hostname": "node1"}
    network = build(assignments(TransportKind.NETWORK, 3), Placement())
    assert "nodeSelector" not in network["spec"]
    assert "supplementalGroups" not in network["spec"]["securityContext"]
    for made in (serial, network["spec"]):
        assert "nodeName" not in made
    assert "akri.sh/" not in json.dumps(network)
    assert not any(key.startswith("akri.sh/") for key in build()["metadata"]["labels"])
    assert "akri.sh/ports-abc" not in SETTINGS.resources["limits"], "settings are not changed"


@pytest.mark.parametrize(
    ("what", "where"),
    [(assignments(), Placement()), (assignments(), Placement("ports-abc", None)), (assignments(count=2), PORT)],
)
def test_a_serial_device_needs_a_pod_of_its_own_and_its_port(what: Assignments, where: Placement) -> None:
    with pytest.raises(FlashJobError) as caught:
        build(what, where)
    assert caught.value.reason == "InvalidAssignment"


def test_what_it_is_told_reads_back() -> None:
    what = assignments()
    made = build(what)
    assert Assignments.model_validate_json(env(made)[wire.ENV_ASSIGNMENTS]) == what
    note = json.loads(made["metadata"]["annotations"][wire.ANNOTATION_ASSIGNMENTS])
    assert note == [{"task": "porch-0", "attempt": 2}]
    mounts = {m["mountPath"] for m in made["spec"]["containers"][0]["volumeMounts"]}
    paths = [env(made)[key] for key in (wire.ENV_TOKEN_FILE, wire.ENV_CA_FILE, wire.ENV_WORK_DIR)]
    assert all(any(path.startswith(mount) for mount in mounts) for path in paths)
    assert wire.ENV_DOCKER_CONFIG not in env(made)


def test_credentials_are_mounted_only_where_there_are_some() -> None:
    made = build(pull_secrets=["login"])
    assert env(made)[wire.ENV_DOCKER_CONFIG] == wire.MOUNT_DOCKER
    volume = next(v for v in made["spec"]["volumes"] if v["name"] == "docker")
    assert volume["secret"] == {
        "secretName": "login",
        "items": [{"key": ".dockerconfigjson", "path": "config.json"}],
    }


def test_it_is_owned_by_the_job() -> None:
    (owner,) = build()["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("FlashJob", "job-uid", True)


def test_overrides_add_and_never_forge() -> None:
    overrides = PodOverrides.parse(
        {
            "labels": {"team": "a", "akri.sh/instance": "x", "flashjob.dev/job": "other"},
            "tolerations": [{"key": "lab", "operator": "Exists"}],
            "priorityClassName": "low",
        }
    )
    made = build(overrides=overrides)
    assert made["metadata"]["labels"] == {"team": "a", "flashjob.dev/job": "porch", "flashjob.dev/component": "flasher"}
    assert made["spec"]["tolerations"] == [{"key": "lab", "operator": "Exists", "value": ""}]
    assert made["spec"]["priorityClassName"] == "low"


def test_no_serial_groups_where_none_are_configured() -> None:
    assert "supplementalGroups" not in build(settings=replace(SETTINGS, serial_groups=()))["spec"]["securityContext"]


def volume(made: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((v for v in made["spec"]["volumes"] if v["name"] == name), None)


def test_rule_6_a_node_cache_is_mounted_read_only_and_nothing_of_the_node_is() -> None:
    plain, made = build(), build(settings=replace(SETTINGS, cache_claim="cache"))
    assert volume(plain, "cache") is None
    assert wire.ENV_CACHE_DIR not in env(plain)
    assert volume(made, "cache") == {
        "name": "cache",
        "persistentVolumeClaim": {"claimName": "cache", "readOnly": True},
    }
    assert not [each for each in made["spec"]["volumes"] if "hostPath" in each]
    (mount,) = [m for m in made["spec"]["containers"][0]["volumeMounts"] if m["name"] == "cache"]
    assert mount == {"name": "cache", "mountPath": env(made)[wire.ENV_CACHE_DIR], "readOnly": True}


def test_a_mirror_may_be_the_nodes_own() -> None:
    made = build(settings=replace(SETTINGS, mirror="http://$(FLASHJOB_NODE_IP):5080"))
    variables = made["spec"]["containers"][0]["env"]
    assert variables[0] == {"name": "FLASHJOB_NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
    assert {"name": "FLASHJOB_MIRROR", "value": "http://$(FLASHJOB_NODE_IP):5080"} in variables
    fixed = build(settings=replace(SETTINGS, mirror="https://mirror.test"))
    assert env(fixed)["FLASHJOB_MIRROR"] == "https://mirror.test"
    assert "FLASHJOB_NODE_IP" not in env(fixed)
