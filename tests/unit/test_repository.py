# SPDX-License-Identifier: Apache-2.0
"""What holds for every file: licence, size, output, reasons that help, and documents that point to what exists."""

import ast
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest

from attestation.errors import Code
from firmware_pipeline.errors import Reason as PipelineReason
from flashjob.wire.reasons import Reason

ROOT = Path(__file__).parents[2]
PACKAGES = ("attestation", "firmware_pipeline", "flashjob")
TREES = (*PACKAGES, ".ci", "benchmarks", "crds", "deploy", "docs", "examples", "scripts", "tests")
SOURCE = {".py", ".pyi", ".go", ".yaml", ".yml", ".sh", ".proto", ".toml", ".tpl"}
GPL = "flashjob/flasher/esptool_worker/"
MAX_LINES = 550
"""About 500; beyond that a module has more than one idea."""
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(rf"`((?:{'|'.join(map(re.escape, TREES))})/[\w./-]+)`")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def files(*trees: str) -> Iterator[Path]:
    """Files of the tree, relative to it; no hidden ones, no caches."""
    for tree in trees:
        for folder, inner, names in os.walk(ROOT / tree):
            inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
            yield from ((Path(folder) / name).relative_to(ROOT) for name in names if not name.startswith("."))


def generated(path: Path) -> bool:
    return "_pb2" in path.name


def sources() -> list[Path]:
    top = [path.relative_to(ROOT) for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    named = [path for path in top if path.suffix in SOURCE or path.name in ("Makefile", "demo")]
    return named + [path for path in files(*TREES) if path.suffix in SOURCE or path.name == "run"]


def documents() -> list[Path]:
    top = [path.relative_to(ROOT) for path in ROOT.glob("*.md")]
    return sorted(top + [path for path in files(*TREES) if path.suffix == ".md"])


def test_every_source_file_begins_with_its_licence() -> None:
    wrong = []
    for path in sources():
        head = (ROOT / path).read_text().splitlines()[:2]
        licence = "GPL-2.0-or-later" if path.as_posix().startswith(GPL) else "Apache-2.0"
        if not any(line.lstrip("#/ ") == f"SPDX-License-Identifier: {licence}" for line in head):
            wrong.append(str(path))
    assert wrong == []


def test_no_module_is_too_long() -> None:
    modules = [path for path in files(*PACKAGES, "benchmarks") if path.suffix == ".py" and not generated(path)]
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in modules}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_packages_do_not_print() -> None:
    wrong = []
    for path in files(*PACKAGES):
        if path.suffix == ".py" and not generated(path):
            for node in ast.walk(ast.parse((ROOT / path).read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                    wrong.append(f"{path}:{node.lineno}")
    assert wrong == []


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_says_what_is_the_case_and_what_to_do(reason: Reason) -> None:
    assert re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]+)*", reason.value)
    assert reason.name == re.sub(r"(?<!^)(?=[A-Z])", "_", reason.value).upper()
    assert 3 <= len(reason.meaning.split()) <= 20
    assert reason.next_step
    for text in (reason.meaning, reason.next_step):
        assert text == text.strip()
        assert not text.endswith(".")
        assert len(text) <= 160


def test_no_two_reasons_mean_the_same() -> None:
    meanings = [reason.meaning for reason in Reason]
    assert len(set(meanings)) == len(meanings)


@pytest.mark.parametrize("codes", [Code, PipelineReason])
def test_codes_of_the_packages_below_are_well_formed(codes: type[StrEnum]) -> None:
    form = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*|([A-Z][a-z0-9]*)+")
    assert [code.value for code in codes if not form.fullmatch(code.value)] == []


@pytest.mark.parametrize("code", list(Code))
def test_every_rejection_code_is_explained(code: Code) -> None:
    assert code.doc.endswith(".")


@pytest.mark.parametrize("document", documents(), ids=str)
def test_links_and_paths_of_a_document_lead_somewhere(document: Path) -> None:
    text = _FENCE.sub("", (ROOT / document).read_text())
    broken = []
    for link in _LINK.findall(text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (ROOT / document).parent / target if target else ROOT / document
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(link)
    broken += [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    assert broken == []


def _anchors(document: Path) -> set[str]:
    headings = _HEADING.findall(_FENCE.sub("", document.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("folder", "pattern"), [("decisions", "[0-9]*.md"), ("runbooks", "[a-z]*.md")])
def test_every_page_stands_in_its_table_of_contents(folder: str, pattern: str) -> None:
    place = ROOT / "docs" / folder
    assert {page.name for page in place.glob(pattern)} <= set(_LINK.findall((place / "README.md").read_text()))


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(page.name[:4]) for page in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_runbooks_speak_of_reasons_that_exist() -> None:
    table = (ROOT / "docs" / "runbooks" / "README.md").read_text()
    named = re.findall(r"`([A-Z]\w+)`", table)
    assert named
    assert [name for name in named if name not in set(Reason)] == []
