# SPDX-License-Identifier: Apache-2.0
"""YAML with one reading; numbers in names are those of the module's rules."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attestation import plain_yaml

GOOD: dict[str, Any] = {
    "a: 1": {"a": 1},
    "a: -7": {"a": -7},
    "{a: true, b: null, c: ~}": {"a": True, "b": None, "c": None},
    "a: 2026-01-01": {"a": "2026-01-01"},
    "a: 12:30:45": {"a": "12:30:45"},
    "a: yes": {"a": "yes"},
    "a: 0x10": {"a": "0x10"},
    "a: 010": {"a": "010"},
    "a: 1e9": {"a": "1e9"},
    f"a: {'0' * 64}": {"a": "0" * 64},
    "- [x, {y: z}]": [["x", {"y": "z"}]],
}
BAD = {
    "1 two documents": "a: 1\n---\nb: 1",
    "1 no YAML": "a: [",
    "2 a key twice": "a: 1\na: 2",
    "2 a key twice inside": "a: [{b: 1, b: 2}]",
    "2 a number as a key": "1: a",
    "2 a list as a key": "[a]: b",
    "3 an alias": "a: &x 1\nb: *x",
    "3 a merge key": "a: &x {b: 1}\nc:\n  <<: *x",
    "3 a tag": "a: !!str 1",
    "3 a tag of Python": 'a: !!python/object/apply:os.system ["id"]',
    "3 nested too deeply": f"a: {'[' * 10}{']' * 10}",
    "3 nested far too deeply": "[" * 100_000,
    "4 a line break": 'a: "b\\nc"',
    "4 right to left": 'a: "\\u202e"',
    "4 escape": 'a: "\\e[2J"',
    "4 not YAML's": "a: \x00",
}


@pytest.mark.parametrize("text", GOOD)
def test_1_plain_values_read_as_yaml_1_2_writes_them(text: str) -> None:
    assert plain_yaml.load(text, nesting=8) == GOOD[text]


@pytest.mark.parametrize("name", BAD)
def test_what_could_be_read_in_another_way_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        plain_yaml.load(BAD[name], nesting=8)
    assert "\n" not in str(caught.value)


def test_4_line_breaks_where_they_are_allowed() -> None:
    pem = "a: |\n  -----BEGIN\n  x\n"
    assert plain_yaml.load(pem, nesting=2, line_breaks=True) == {"a": "-----BEGIN\nx\n"}
    with pytest.raises(ValueError, match=r"line 1: .* cannot be seen"):
        plain_yaml.load(pem, nesting=2)
    with pytest.raises(ValueError, match="cannot be seen"):
        plain_yaml.load('a: "\\r"', nesting=2, line_breaks=True)


VALUES = st.recursive(
    st.integers(-(2**31), 2**31)
    | st.booleans()
    | st.none()
    | st.text(st.characters(categories=["L", "N", "P"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_what_the_library_writes_is_read(value: Any) -> None:
    assert plain_yaml.load(yaml.dump(value, Dumper=_NoAliases, sort_keys=False), nesting=20) == value


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
