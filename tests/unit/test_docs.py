# SPDX-License-Identifier: Apache-2.0
"""What the documents tell people to type exists, and what they list is complete."""

import contextlib
import importlib
import os
import random
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import attestation.cli
import firmware_pipeline.cli
from attestation.policy import RootOfTrust
from firmware_pipeline.errors import Reason as PipelineReason
from flashjob.api.crds import KINDS
from flashjob.api.flashjob import FlashJob
from flashjob.api.flashtask import Phase
from flashjob.cli.main import COMMANDS
from flashjob.gateway.door import MAX_BODY_BYTES
from flashjob.virtual.fleet import FleetSpec
from flashjob.wire import gateway
from flashjob.wire.base import WireModel
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.reasons import Reason

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PROGRAMS = ("flashjob", "kubectl flash", "firmware-pipeline", "attest")


def text(name: str | Path) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str | Path, kind: str) -> list[str]:
    return [body for language, body in _BLOCK.findall(text(name)) if language == kind]


def typed(name: Path) -> Iterator[str]:
    """Every command line of ours in a shell block, continued lines joined, here-documents left out."""
    for body in blocks(name, "sh"):
        body = re.sub(r"<<'?EOF'?$.*?^EOF$", "", body, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
        for line in body.splitlines():
            line = line.split("  #")[0].removeprefix(".venv/bin/")
            if line.startswith(tuple(f"{program} " for program in _PROGRAMS)):
                yield line


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The click command that these words call, and its arguments. Fails where there is none."""
    if words[:2] == ["kubectl", "flash"]:
        words = ["flashjob", *words[2:]]
    program, *rest = words
    if program == "flashjob":
        assert rest[0] in COMMANDS, f"flashjob has no command {rest[0]}"
        app: typer.Typer = importlib.import_module(COMMANDS[rest.pop(0)][0]).app
    else:
        app = {"firmware-pipeline": firmware_pipeline.cli.app, "attest": attestation.cli.app}[program]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    return command, rest


@pytest.mark.parametrize("line", sorted({line for name in DOCUMENTS for line in typed(name)}))
def test_a_command_that_is_written_down_is_understood(line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if word not in ("&", ">", "|")]
    command, arguments = command_of(words)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
    assert used - {"--help"} <= known
    missing = [
        parameter.opts[0]
        for parameter in command.params
        if parameter.required and parameter.opts[0].startswith("-") and not used.intersection(parameter.opts)
    ]
    assert "--help" in used or missing == []


def test_the_documents_show_commands() -> None:
    assert sum(1 for name in DOCUMENTS for _ in typed(name)) >= 15


def test_reasons_are_those_of_the_code() -> None:
    page: str = runpy.run_path(str(ROOT / "scripts" / "reasons.py"))["page"]()
    assert text("docs/reasons.md") == page, "run: .venv/bin/python scripts/reasons.py"


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_reasons_that_are_named_exist(name: Path) -> None:
    """Words that look like a reason and are in a table or list beside reasons: those with a known ending."""
    named = set(
        re.findall(
            r"`([A-Z][a-z]+[A-Za-z]*(?:Mismatch|Timeout|Missing|Invalid|TooLow|Unavailable|NotFound))`", text(name)
        )
    )
    assert named <= {str(reason) for reason in (*Reason, *PipelineReason)}


def test_concepts_name_every_kind_phase_and_condition() -> None:
    page = text("docs/concepts.md")
    for kind in KINDS:
        assert f"`{kind.model.__name__}`" in page
    assert [phase for phase in Phase if f"`{phase}`" not in page] == []
    conditions = str(FlashJob.model_fields["status"].annotation.model_fields["conditions"].description)  # type: ignore[union-attr]
    assert [name for name in re.findall(r"[A-Z]\w+", conditions) if f"`{name}`" not in page] == []


def test_roots_of_trust_are_all_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", text("docs/roots-of-trust.md"), re.MULTILINE)
    assert rows == [str(tier) for tier in RootOfTrust]


def test_gateway_paths_are_those_of_the_module() -> None:
    declared = re.findall(r"^    (GET|POST) +(/v1/\S+)", gateway.__doc__ or "", re.MULTILINE)
    page = text("docs/gateway-api.md")
    assert len(declared) == 9
    for method, path in declared:
        assert f"`{method} {path}`" in page
    assert f"{MAX_BODY_BYTES // 1024} KiB" in page


MODELS = [
    model
    for model in vars(gateway).values()
    if isinstance(model, type) and issubclass(model, WireModel) and model.__module__ == gateway.__name__
]
INNER = {gateway.TaskProgress: gateway.ProgressList, gateway.HardwareReport: gateway.DeviceResult}


@pytest.mark.parametrize("model", [m for m in MODELS if m is not gateway.PodResult], ids=lambda model: model.__name__)
def test_gateway_models_are_described_field_by_field(model: type[WireModel]) -> None:
    row = re.search(rf"^\| {INNER.get(model, model).__name__} \| (.*) \|$", text("docs/gateway-api.md"), re.MULTILINE)
    assert row, f"{model.__name__} has no row"
    for name, field in model.model_fields.items():
        shown = re.search(rf"`{field.alias or name}`(\?)?", row[1])
        assert shown, f"{model.__name__}.{field.alias or name} is not described"


def test_exit_codes_of_the_bench_are_those_of_the_code() -> None:
    rows = {int(code) for code in re.findall(r"^\| (\d) \|", text("docs/bench.md"), re.MULTILINE)}
    assert rows == {int(code) for code in ExitCode if code is not ExitCode.STOPPED}


def test_the_example_of_a_fleet_is_one() -> None:
    (body,) = blocks("examples/README.md", "json")
    assert [device.name for device in FleetSpec.model_validate_json(body).devices] == ["porch-1", "yard-1"]


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_a_terminal_of_100_columns_is_enough(name: Path) -> None:
    """Captures; messages of kubectl are as long as they are."""
    wide = [line for body in blocks(name, "text") for line in body.splitlines() if len(line) > 100]
    assert wide == []


def test_the_index_names_every_page() -> None:
    linked = re.findall(r"\]\(([^)#]+)", text("docs/README.md"))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} | {"decisions/README.md", "runbooks/README.md"}
    assert pages - {"README.md"} <= set(linked)


def workplace(directory: Path) -> dict[str, str]:
    """What the pages call the root of this repository; the environment to type in."""
    (directory / "examples").symlink_to(ROOT / "examples")
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    return {**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "100"}


def two_ports() -> int:
    """The first of two free TCP ports, outside the range that the system hands out."""
    for first in random.sample(range(20_000, 30_000, 2), 100):
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", first))
            other.bind(("127.0.0.1", first + 1))
            return first
    raise AssertionError("no two free ports beside each other")


def played(script: str, directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a page's commands, with free TCP ports for its virtual devices, which end with it."""
    first = two_ports()
    script = re.sub(r"prepare\.py (\S+)", rf"prepare.py \1 --first-port {first}", script)
    script = script.replace("18081", str(first)).replace("18082", str(first + 1))
    ready = "> ready.json & fleet=$!; trap 'kill $fleet' EXIT\nwhile kill -0 $fleet && [ ! -s ready.json ]; do sleep 0.1; done"
    script = script.replace("> ready.json &", ready)
    return subprocess.run(
        ["bash", "-O", "expand_aliases"],
        input=script,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.integration
@pytest.mark.timeout(200)
def test_the_bench_page_works_as_it_stands(tmp_path: Path) -> None:
    """All its shell blocks, one after the other."""
    script = "\n".join(blocks("docs/bench.md", "sh")).replace("kill %1", "")
    done = played(
        re.sub(r"^python -c .* bootloader.bin$", "", script, flags=re.MULTILINE), tmp_path, workplace(tmp_path)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Proven: fresh evidence") == 2, done.stdout + done.stderr
    assert done.stdout.count("MeasurementMismatch: ") == 1
    assert done.stdout.count("RootOfTrustTooLow: ") == 1
    assert done.stdout.rstrip().endswith("proven")


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_tour_works_as_it_stands(tmp_path: Path) -> None:
    """The sandbox in one terminal; in the other what it prints, then every block of the tour."""
    environment = workplace(tmp_path)
    page = text("README.md")
    tour = page[page.index("## Five-minute tour") : page.index("## Parts")]
    terminal, *rest = (body for language, body in _BLOCK.findall(tour) if language == "sh")
    up = shlex.split(terminal.splitlines()[-1])
    with subprocess.Popen(up, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as sandbox:
        assert sandbox.stdout
        try:
            said: list[str] = []
            for line in sandbox.stdout:
                said.append(line.strip())
                if line.startswith("Ctrl-C"):
                    break
            pasted = [line for line in said if line.startswith(("export ", "alias "))]
            (registry,) = re.findall(r" (127\.0\.0\.1:\d+)/NAME:TAG", "\n".join(said))
            script = "\n".join([*pasted, *rest]).replace("127.0.0.1:PORT", registry)
            done = played(script, tmp_path, environment)
        finally:
            sandbox.send_signal(signal.SIGINT)
            sandbox.wait(60)
    assert "berlin-2-0: Succeeded, 2/2 done" in done.stderr, done.stdout + done.stderr
    assert "hamburg-2-0: Failed, 1/1 done" in done.stderr
    assert re.search("^exit code 1$", done.stdout, re.MULTILINE)
    assert re.search("^hamburg-2-0 +Failed +1/1 +2.0.0 +MeasurementMismatch ", done.stdout, re.MULTILINE)
