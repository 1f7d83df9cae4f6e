# SPDX-License-Identifier: Apache-2.0
"""Just enough of GitHub Actions and GitLab CI to run the examples: expressions, steps, outputs, inputs, dotenv. Every
script block is run by bash as those systems run it; a syntax that is not known here is an error, never skipped."""

import os
import re
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")
_INTERPOLATION = re.compile(r"\$\[\[\s*inputs\.(\w+)\s*\]\]")


def bash(script: str, directory: Path, environment: Mapping[str, str]) -> None:
    """Run one block; its words are in the AssertionError where it fails."""
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=directory, env=dict(environment), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n--- ended with {done.returncode}\n{done.stdout}{done.stderr}"


@dataclass
class GitHub:
    """One workflow run: `contexts` are github, secrets, vars; `actions` local actions by their `uses`.

    Artifacts of upload-artifact are kept in `store`; other foreign actions are noted in `foreign`.
    """

    workspace: Path
    environment: Mapping[str, str]
    contexts: Mapping[str, Mapping[str, str]]
    actions: Mapping[str, Path]
    foreign: list[str] = field(default_factory=list)
    store: dict[str, bytes] = field(default_factory=dict)
    summary: str = ""

    def job(self, job: dict[str, Any], matrix: Mapping[str, str] | None = None) -> dict[str, str]:
        """Run a job's steps; its outputs."""
        scope = {**self.contexts, "matrix": matrix or {}}
        outputs = self._steps(job["steps"], scope)
        return {name: self._text(value, {**scope, **outputs}) for name, value in job.get("outputs", {}).items()}

    def _steps(self, steps: list[dict[str, Any]], scope: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
        outputs: dict[str, dict[str, str]] = {}
        for step in steps:
            here = {**scope, **outputs}
            given = {name: self._text(value, here) for name, value in step.get("with", {}).items()}
            if "run" in step:
                assert not _EXPRESSION.search(step["run"]), "an expression inside a script could inject code: use env"
                environment = {name: self._text(value, here) for name, value in step.get("env", {}).items()}
                made = self._run(step["run"], environment)
            else:
                made = self._use(step["uses"], given, scope)
            if "id" in step:
                outputs[f"steps.{step['id']}.outputs"] = made
        return outputs

    def _run(self, script: str, environment: Mapping[str, str]) -> dict[str, str]:
        files = {name: self.workspace / f".{uuid.uuid4().hex}" for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in files.values():
            path.touch()
        given = {name: str(path) for name, path in files.items()}
        bash(script, self.workspace, {**self.environment, **environment, **given})
        written, summary = (path.read_text() for path in files.values())
        self.summary += summary
        for path in files.values():
            path.unlink()
        many = {m[1]: m[3] for m in re.finditer(r"^(\w+)<<(\w+)\n(.*?)\n\2$", written, re.M | re.S)}
        return {**dict(re.findall(r"^(\w+)=(.*)$", written, re.M)), **many}

    def _use(self, uses: str, given: dict[str, str], scope: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        if uses in self.actions:
            action = yaml.safe_load(self.actions[uses].read_text())
            defaults = {n: self._text(spec.get("default", ""), scope) for n, spec in action["inputs"].items()}
            missing = [n for n, spec in action["inputs"].items() if spec.get("required") and n not in given]
            assert not missing, missing
            assert not set(given) - set(defaults), set(given) - set(defaults)
            steps = self._steps(action["runs"]["steps"], {"github": scope["github"], "inputs": {**defaults, **given}})
            return {name: self._text(spec["value"], steps) for name, spec in action["outputs"].items()}
        name, _, commit = uses.partition("@")
        assert re.fullmatch(r"[0-9a-f]{40}", commit), f"{uses} is not pinned by its commit"
        self.foreign.append(name)
        if name == "actions/upload-artifact":
            path = self.workspace / given["path"]
            self.store[path.name] = path.read_bytes()
        elif name == "actions/download-artifact":
            target = self.workspace / given["path"]
            target.mkdir()
            for file, data in self.store.items():
                (target / file).write_bytes(data)
        return {}

    @staticmethod
    def _text(value: object, scope: Mapping[str, Mapping[str, str]]) -> str:
        def look(match: re.Match[str]) -> str:
            context, _, name = match[1].rpartition(".")
            assert name in scope.get(context, {}), f"{match[0]} is not known"
            return scope[context][name]

        return _EXPRESSION.sub(look, str(value))


def gitlab_component(path: Path, given: Mapping[str, object]) -> dict[str, Any]:
    """A component's jobs with its inputs put in, hidden jobs resolved."""
    header, body = path.read_text().split("\n---\n")
    spec = yaml.safe_load(header)["spec"]["inputs"]
    assert not set(given) - set(spec)
    values = {name: given.get(name, entry.get("default")) for name, entry in spec.items()}

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put(item) for key, item in value.items()}
        if isinstance(value, list):
            return [put(item) for item in value]
        if isinstance(value, str):
            whole = _INTERPOLATION.fullmatch(value)
            return values[whole[1]] if whole else _INTERPOLATION.sub(lambda m: str(values[m[1]]), value)
        return value

    jobs = put(yaml.safe_load(body))
    return {name: {**jobs.get(job.get("extends"), {}), **job} for name, job in jobs.items() if not name.startswith(".")}


def gitlab_job(job: dict[str, Any], directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Run a job as the runner does: before_script and script in one shell; its dotenv report."""
    variables = {name: str(value) for name, value in job.get("variables", {}).items()}
    bash("\n".join([*job["before_script"], *job["script"]]), directory, {**os.environ, **variables, **environment})
    report = job.get("artifacts", {}).get("reports", {}).get("dotenv")
    return dict(line.split("=", 1) for line in (directory / report).read_text().splitlines()) if report else {}
