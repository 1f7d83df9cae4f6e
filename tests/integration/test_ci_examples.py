# SPDX-License-Identifier: Apache-2.0
"""The CI examples, run: every script block in bash, against a real registry, up to a verified artifact for two chips."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from firmware_pipeline import api
from firmware_pipeline.artifact import chips
from firmware_pipeline.credentials import Credential, load_credentials
from firmware_pipeline.signing.keys import load_trusted_key
from flashjob.demo.materials import Materials
from flashjob.sandbox import programs
from flashjob.sandbox.registry import Login, Registry
from flashjob.sandbox.toolchain import build

from .ci_systems import GitHub, bash, gitlab_component, gitlab_job

pytestmark = pytest.mark.integration
EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"
ACTION, WORKFLOW = EXAMPLES / "github" / "action.yml", EXAMPLES / "github" / "firmware.yml"
COMPONENT = EXAMPLES / "gitlab" / "templates" / "firmware.yml"
SHA = "0123456789abcdef0123456789abcdef01234567"
MAKEFILE = f""".PHONY: build
build:
\t@{sys.executable} build.py $(CHIP) $(OUT)
"""
BUILD = """import json, pathlib, sys
from firmware_pipeline.esp import builder
chip, out = sys.argv[1], pathlib.Path(sys.argv[2])
out.mkdir(parents=True)
(out / "app.bin").write_bytes(builder.build_app(chip, "porch", "2.1.0", payload_size=64 * 1024))
(out / "flasher_args.json").write_text(json.dumps({"flash_files": {"0x20000": "app.bin"},
    "app": {"offset": "0x20000", "file": "app.bin"}, "extra_esptool_args": {"chip": chip}}))
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.start(tmp_path / "registry", binary=build(programs.REGISTRY, os.environ), login=Login()) as running:
        yield running


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What a user's repository holds."""
    path = tmp_path / "project"
    path.mkdir()
    (path / "Makefile").write_text(MAKEFILE)
    (path / "build.py").write_text(BUILD)
    return path


@pytest.fixture
def materials(tmp_path: Path) -> Materials:
    return Materials.make(tmp_path / "materials")


def clean_environment(tmp_path: Path) -> dict[str, str]:
    """The variables of a fresh runner, firmware-pipeline on its path."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(tmp_path),
    }


def check_artifact(registry: Registry, reference: str, materials: Materials, *, releases: bool) -> None:
    """Signed, for two chips, tagged, with provenance, and with release statements if the CI had the key."""
    assert registry.login is not None
    login = Credential(registry.login.user, registry.login.password)
    options = api.ClientOptions(plain_http=True, credentials=load_credentials({}, explicit={registry.host: login}))
    store = api.open_store(reference, options)
    digest = reference.split("@")[1]
    assert store.resolve("v2.1.0") == digest
    trusted = load_trusted_key(materials.public("signer").read_bytes(), "ci")
    index = api.verify(store, digest, [trusted]).index
    assert sorted(chips(index)) == ["esp32c3", "esp32s3"]
    for chip in chips(index):
        opened = api.open_chip(store, digest, chip)
        assert opened.config.app.version == "2.1.0"
        assert (opened.release_statement is not None) == releases
        assert len(api.read_layer(store, opened.app)) > 60_000


@pytest.mark.parametrize("login", ["DOCKER_CONFIG", pytest.param("password", marks=pytest.mark.slow)])
def test_the_github_workflow_makes_one_verified_artifact(
    tmp_path: Path, registry: Registry, project: Path, materials: Materials, login: str
) -> None:
    workflow, scratch = yaml.safe_load(WORKFLOW.read_text()), tmp_path / "runner"
    scratch.mkdir()
    environment = {
        **clean_environment(tmp_path), "RUNNER_TEMP": str(scratch), "GITHUB_SERVER_URL": "https://github.example",
        "GITHUB_REPOSITORY": "Team/Porch", "GITHUB_SHA": SHA, "GITHUB_RUN_ID": "7",
        "GITHUB_WORKFLOW_REF": "Team/Porch/.github/workflows/firmware.yml@refs/tags/v2.1.0",
    }  # fmt: skip
    assert registry.login is not None
    user, password = registry.login.user, registry.login.password
    if login == "DOCKER_CONFIG":
        environment["DOCKER_CONFIG"] = str(registry.docker_config(tmp_path / "docker" / "config.json").parent)
        user = password = "nobody"
    text = ACTION.read_text().replace("ghcr.io", registry.host)
    action = tmp_path / "action.yml"
    action.write_text(text.replace('such as --ca-file FILE.\n    default: ""', "\n    default: --plain-http"))
    github = {
        "repository": "Team/Porch", "ref_name": "v2.1.0", "run_number": "21", "actor": user, "token": password,
    }  # fmt: skip
    secrets = {
        "FIRMWARE_SIGNING_KEY": materials.key("signer").read_text(),
        "FIRMWARE_RELEASE_KEY": materials.key("release").read_text(),
    }
    run = GitHub(
        project,
        environment,
        {"github": github, "secrets": secrets, "vars": {"FIRMWARE_PUBLIC_KEY": materials.public("signer").read_text()}},
        {"./.github/actions/firmware": action},
    )
    for chip in workflow["jobs"]["chip"]["strategy"]["matrix"]["chip"]:
        run.job(workflow["jobs"]["chip"], {"chip": chip})
        shutil.rmtree(project / "refs")
    reference = run.job(workflow["jobs"]["artifact"])["ref"]
    check_artifact(registry, reference, materials, releases=True)
    assert f"`{reference}`" in run.summary
    assert list(scratch.iterdir()) == [], "keys stay behind"
    assert "actions/attest-build-provenance" in run.foreign


@pytest.mark.parametrize("releases", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_gitlab_component_makes_one_verified_artifact(
    tmp_path: Path, registry: Registry, project: Path, materials: Materials, releases: bool
) -> None:
    jobs = gitlab_component(COMPONENT, {"options": "--plain-http"})
    assert registry.login is not None
    environment = {
        **clean_environment(tmp_path), "CI_REGISTRY": registry.host, "CI_REGISTRY_IMAGE": f"{registry.host}/team/porch",
        "CI_REGISTRY_USER": registry.login.user, "CI_REGISTRY_PASSWORD": registry.login.password,
        "CI_COMMIT_SHA": SHA, "CI_COMMIT_TAG": "v2.1.0", "CI_COMMIT_REF_SLUG": "v2-1-0", "CI_PIPELINE_IID": "21",
        "CI_PROJECT_URL": "https://gitlab.example/team/porch", "FIRMWARE_SIGNING_KEY": str(materials.key("signer")),
        "FIRMWARE_PUBLIC_KEY": str(materials.public("signer")),
    }  # fmt: skip
    if releases:
        environment["FIRMWARE_RELEASE_KEY"] = str(materials.key("release"))
    (matrix,) = jobs["firmware-chip"]["parallel"]["matrix"]
    for chip in matrix["CHIP"]:
        gitlab_job(jobs["firmware-chip"], project, {**environment, "CHIP": chip})
    assert sorted(path.name for path in (project / "refs").iterdir()) == ["esp32c3", "esp32s3"]
    report = gitlab_job(jobs["firmware-artifact"], project, environment)
    assert set(report) == {"DIGEST"}
    check_artifact(registry, f"{registry.host}/team/porch@{report['DIGEST']}", materials, releases=releases)


def test_a_child_that_another_key_signed_is_not_joined(
    tmp_path: Path, registry: Registry, project: Path, materials: Materials
) -> None:
    """Whoever can push to the registry still cannot put firmware into the release."""
    jobs = gitlab_component(COMPONENT, {"options": "--plain-http", "chips": ["esp32c3"]})
    assert registry.login is not None
    environment = {
        **clean_environment(tmp_path), "CI_REGISTRY_IMAGE": f"{registry.host}/team/porch", "CHIP": "esp32c3",
        "CI_REGISTRY_USER": registry.login.user, "CI_REGISTRY_PASSWORD": registry.login.password, "CI_COMMIT_SHA": SHA,
        "CI_COMMIT_TAG": "v2.1.0", "CI_COMMIT_REF_SLUG": "v2-1-0", "CI_PIPELINE_IID": "21",
        "CI_PROJECT_URL": "https://gitlab.example/team/porch", "FIRMWARE_SIGNING_KEY": str(materials.key("grant")),
        "FIRMWARE_PUBLIC_KEY": str(materials.public("signer")),
    }  # fmt: skip
    gitlab_job(jobs["firmware-chip"], project, environment)
    with pytest.raises(AssertionError, match="ended with 6"):
        gitlab_job(jobs["firmware-artifact"], project, environment)
    assert not (project / "firmware.env").exists()


def _blocks() -> Iterator[tuple[str, str]]:
    for path in (ACTION, WORKFLOW):
        document = yaml.safe_load(path.read_text())
        lists = [document["runs"]["steps"]] if "runs" in document else [j["steps"] for j in document["jobs"].values()]
        for steps in lists:
            yield from ((f"{path.name}: {step['name']}", step["run"]) for step in steps if "run" in step)
    for name, job in gitlab_component(COMPONENT, {}).items():
        yield f"firmware.yml: {name}", "\n".join([*job["before_script"], *job["script"]])


@pytest.mark.parametrize(("name", "script"), list(_blocks()))
def test_every_script_is_clean_shell(name: str, script: str, tmp_path: Path) -> None:
    assert "set -euo pipefail" in script, name
    path = tmp_path / "block.sh"
    path.write_text(f"#!/bin/bash\n{script}\n")
    bash(f"bash -n {path}", tmp_path, os.environ)
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", "-S", "warning", str(path)], capture_output=True, text=True, check=False)
        assert found.returncode == 0, f"{name}\n{found.stdout}"


def test_the_workflow_asks_for_no_more_rights_than_it_needs() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["permissions"] == {}
    assert workflow["jobs"]["chip"]["permissions"] == {"contents": "read", "packages": "write"}
    assert workflow["jobs"]["artifact"]["permissions"] == {
        "contents": "read", "packages": "write", "id-token": "write", "attestations": "write",
    }  # fmt: skip
    for uses in re.findall(r"uses: (\S+)", WORKFLOW.read_text() + ACTION.read_text()):
        assert uses.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", uses), uses
