# SPDX-License-Identifier: Apache-2.0
"""Every reason code is documented, and every rule of the verifier is in the table of rules."""

import re
from pathlib import Path

from attestation.errors import Code
from tests.unit.attestation.world import Minted, judge

PAGE = (Path(__file__).parents[3] / "docs" / "attestation.md").read_text()


def test_every_code_has_its_line_and_no_line_is_stale() -> None:
    documented = {line for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") == 3}
    expected = {f"| `{code.value}` | {code.doc} |" for code in Code}
    assert expected <= documented, f"add to docs/attestation.md: {sorted(expected - documented)}"
    families = {code.value.split(".")[0] for code in Code}
    stale = {line for line in documented - expected if line.split("`")[1] not in families}
    assert not stale, stale
    assert all(f"| `{family}` | `" in PAGE or family == "size" for family in families)


def test_the_table_of_rules_is_in_the_order_of_the_verifier() -> None:
    rules = [step.rule for step in judge(Minted()).trail]
    rows = re.findall(r"^\| \d+ \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == rules
