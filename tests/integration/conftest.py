# SPDX-License-Identifier: Apache-2.0
"""One control plane per test run, compiled once; each test brings its own namespace."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashjob.errors import FlashJobError
from flashjob.sandbox import programs
from flashjob.sandbox.launcher import ControlPlane
from flashjob.sandbox.main import ENTRY_POINT, Sandbox
from flashjob.sandbox.registry import Login
from flashjob.sandbox.toolchain import BuildProgress, build

from .world import Place, World

POD_PROGRAM = "tests.integration.pod_program"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile what is not compiled yet, outside of any test and its time limit; the first run on a machine says so."""
    if session.config.option.collectonly or not any(item.get_closest_marker("integration") for item in session.items):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")

    def show(progress: BuildProgress) -> None:
        if reporter is not None and progress.done % 100 == 0:
            reporter.write_line(f"{progress.program}: {progress.what} {progress.done}/{progress.total}")

    try:
        for program in (programs.REGISTRY, programs.CONTROL_PLANE):
            build(program, os.environ, show)
    except FlashJobError as error:
        pytest.exit(f"the embedded default could not be built: {error}", returncode=1)


@pytest.fixture(scope="session")
def control_plane_binary() -> Path:
    """The compiled control plane."""
    return build(programs.CONTROL_PLANE, os.environ)


@pytest.fixture(scope="session")
def control_plane(control_plane_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane, with an audit log at `state_dir / "audit.log"`."""
    state_dir = tmp_path_factory.mktemp("control-plane")
    with ControlPlane.start(state_dir, binary=control_plane_binary, audit_log=state_dir / "audit.log") as plane:
        yield plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A fresh namespace with its default service account."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    control_plane.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    return name


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory, control_plane_binary: Path) -> Iterator[Sandbox]:
    """A sandbox of two nodes, with a registry that wants a password; its pods may run the tests' own program."""
    state_dir = tmp_path_factory.mktemp("sandbox")
    nodes, programs_ = ("node-a", "node-b"), (ENTRY_POINT, POD_PROGRAM)
    with Sandbox.up(state_dir, os.environ, nodes=nodes, login=Login(), entry_points=programs_) as running:
        yield running


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, control_plane_binary: Path) -> Iterator[World]:
    """The whole product on a sandbox of its own."""
    running = World.up(tmp_path_factory.mktemp("world"), os.environ)
    yield running
    running.down()


@pytest.fixture
def place(world: World) -> Iterator[Place]:
    """A namespace of this test alone."""
    with world.place() as made:
        yield made
