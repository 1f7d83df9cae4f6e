# SPDX-License-Identifier: Apache-2.0
"""The very pod that the operator builds runs the very flasher on a node of the sandbox, and says how it ended."""

from __future__ import annotations

import json

import pytest

from flashjob.flasher.main import exit_code
from flashjob.wire.gateway import PodResult
from flashjob.wire.pod import Assignment, Assignments, TransportKind
from flashjob.wire.target import Measurement, Target
from flashjob.workloads.pod import Owner, Placement, PodSettings, build_pod

from .test_sandbox_node import Cluster, cluster, instance, terminated

pytestmark = pytest.mark.integration
__all__ = ["cluster"]


def test_the_operators_pod_runs_the_flasher(cluster: Cluster) -> None:
    sandbox = cluster.sandbox
    port = instance(cluster, "node-a", "/dev/no-such-port")
    ca = sandbox.plane.ca.read_text()
    cluster.create("configmaps", {"metadata": {"name": "flashjob-gateway-ca"}, "data": {"ca.crt": ca}})
    login = sandbox.registry.docker_config(sandbox.state_dir / "docker" / "pod.json").read_text()
    secret = {"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": login}}
    cluster.create("secrets", {"metadata": {"name": "registry-login"}, **secret})
    cluster.create("serviceaccounts", {"metadata": {"name": "flashjob-flasher"}})
    digest = "sha256:" + "0" * 64
    target = Target(
        repository=f"{sandbox.registry.host}/team/porch",
        index_digest=digest,
        manifest_digest=digest,
        config_digest=digest,
        chip="esp32s3",
        chip_id=9,
        application="porch",
        version="2.0.0",
        secure_version=0,
        image_size=1,
        image_digest=digest,
        measurements=(Measurement(scheme="esp-image", alg=-16, value="0" * 64),),
        plain_http=True,
    )
    assignment = Assignment(
        task="job-abc",
        attempt=1,
        device="01" + "0" * 64,
        transport=TransportKind.SERIAL,
        mac="02:00:00:00:00:01",
        target=target,
    )
    pod = build_pod(
        "job-abc-1",
        Owner("job", "00000000-0000-0000-0000-000000000000", "job"),
        Assignments(namespace=cluster.namespace, job="job", items=(assignment,)),
        Placement(instance=port, node="node-a"),
        PodSettings(image="none", gateway_url=sandbox.plane.url),  # TLS of the right CA, but no gateway
        deadline_seconds=120,
        pull_secrets=["registry-login"],
    )
    del pod["metadata"]["ownerReferences"]  # there is no job in this test
    cluster.create("pods", pod)
    status = cluster.ended("job-abc-1", seconds=100)
    end = terminated(status)
    result = PodResult.model_validate_json(json.dumps(json.loads(end["message"])))
    assert [item.task for item in result.items] == ["job-abc"]
    assert not result.items[0].ok
    # It got past the registry's login with the mounted Secret: only the artifact is missing.
    assert result.items[0].reason == "ImageNotFound"
    assert end["exitCode"] == exit_code(list(result.items)) != 0
