# SPDX-License-Identifier: Apache-2.0
"""A cluster is used because it was asked for, never because a variable is set."""

from pathlib import Path

import pytest

from flashjob.cluster.login import configuration, own_namespace
from flashjob.errors import FlashJobError

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: one
clusters: [{name: c, cluster: {server: "https://SERVER:6443"}}]
users: [{name: u, user: {token: secret}}]
contexts:
- {name: one, context: {cluster: c, user: u}}
"""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG.replace("SERVER", "127.0.0.1"))
    return path


async def test_a_set_variable_is_not_a_wish(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(FlashJobError) as caught:
        await configuration()
    assert caught.value.reason == "NoCluster"


async def test_a_named_file_is(kubeconfig: Path) -> None:
    made = await configuration(kubeconfig)
    assert made.host == "https://127.0.0.1:6443"
    assert made.client_session_kwargs == {"trust_env": False}


async def test_proxies_hold_for_other_machines(kubeconfig: Path) -> None:
    kubeconfig.write_text(KUBECONFIG.replace("SERVER", "192.0.2.1"))
    made = await configuration(kubeconfig)
    assert not made.client_session_kwargs


@pytest.mark.parametrize("broken", ["", "[]", "{}", "a: [", "apiVersion: v1\nkind: Config\n", "\xff\xfe"])
async def test_a_file_that_is_no_kubeconfig_is_named(kubeconfig: Path, broken: str) -> None:
    kubeconfig.write_text(broken)
    with pytest.raises(FlashJobError, match=str(kubeconfig)) as caught:
        await configuration(kubeconfig)
    assert caught.value.reason == "NoCluster"


async def test_an_unknown_context_is_named(kubeconfig: Path) -> None:
    with pytest.raises(FlashJobError, match="two"):
        await configuration(kubeconfig, "two")


def test_the_namespace_is_the_pods_or_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "namespace"
    monkeypatch.setenv("FLASHJOB_NAMESPACE_FILE", str(path))
    assert own_namespace() == "flashjob-system"
    path.write_text("other\n")
    assert own_namespace() == "other"
