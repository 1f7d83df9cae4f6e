# SPDX-License-Identifier: Apache-2.0
"""Every reason code is documented, and every rule of the verifier is in the table of rules."""

import re
from pathlib import Path

from attestation.errors import Code
from tests.unit.attestation.world import Minted, judge

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "attestation"
PAGE = (ROOT / "docs" / "attestation.md").read_text()
HOMES = {
    family: (home, set(re.findall(r"`([\w.]+)`", others)))
    for family, home, others in re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|((?: `[\w.]+`,?)* ?)\|$", PAGE, re.MULTILINE)
}
"""Family of codes: its home and who else says its codes, as documented."""


def test_every_code_has_its_line_and_no_line_is_stale() -> None:
    documented = {line for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") == 3}
    expected = {f"| `{code.value}` | {code.doc} |" for code in Code}
    assert expected <= documented, f"add to docs/attestation.md: {sorted(expected - documented)}"
    families = {code.value.split(".")[0] for code in Code}
    stale = {line for line in documented - expected if line.split("`")[1] not in families}
    assert not stale, stale
    assert families == HOMES.keys(), families ^ HOMES.keys()


def test_every_family_has_one_home_and_whoever_else_says_its_codes_is_listed() -> None:
    """Where a code is only compared (the vector of a result, reappraisal, commands) does not count."""
    said: dict[str, set[str]] = {family: set() for family in HOMES}
    for path in SOURCES.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCES).with_suffix("").parts)
        if module != "errors" and not module.startswith("cli."):
            for name in re.findall(r"\bCode\.([A-Z0-9_]+)", path.read_text()):
                said[Code[name].value.split(".")[0]].add(module)
    for family, (home, others) in HOMES.items():
        assert home in said[family], f"{family}: {home} does not say it"
        assert said[family] - {"ear", "reappraisal"} <= {home, *others}, (
            f"{family}: list who says it in docs/attestation.md"
        )
        assert {home, *others} <= said[family], f"{family}: not all that are listed say it"


def test_the_table_of_rules_is_in_the_order_of_the_verifier() -> None:
    rules = [step.rule for step in judge(Minted()).trail]
    rows = re.findall(r"^\| \d+ \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == rules
