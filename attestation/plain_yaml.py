# SPDX-License-Identifier: Apache-2.0
"""YAML that says one thing only: for policies and discovery details, where a second reading would be somebody's way in. Pure.

Rules:

1. One document of mappings, lists and plain values: text, whole numbers, true and false, null, as YAML 1.2 writes them
   (what looks like a date or a time is text).
2. Keys are text, and no key stands twice in a mapping.
3. No alias, no tag, no more than `nesting` levels.
4. Text has no character that cannot be seen, but for line breaks where the caller allows them.
"""

import re
from typing import Any, Final

import yaml

_RESOLVERS: Final = {
    first: [(f"tag:yaml.org,2002:{kind}", re.compile(pattern))]
    for kind, pattern, firsts in (
        ("bool", r"(true|false)\Z", "tf"),
        ("int", r"-?(0|[1-9][0-9]{0,17})\Z", "-0123456789"),
        ("null", r"(null|~|)\Z", ("n", "~", "")),
    )
    for first in firsts
}
"""By a plain scalar's first character: what is not text (rule 1)."""


def load(text: str, *, nesting: int, line_breaks: bool = False) -> Any:
    """Read one document.

    Args:
        text: the document.
        nesting: most nested mappings and lists, the outermost included; a scalar counts as one.
        line_breaks: allow them in text, as PEM needs them.

    Raises:
        ValueError: a rule is broken, or it is no YAML; the message names the line.
    """
    loader = _Loader(text, nesting, line_breaks)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """What differs from the rules is refused, not resolved."""

    def __init__(self, text: str, nesting: int, line_breaks: bool) -> None:
        try:
            super().__init__(text)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error
        self.yaml_implicit_resolvers = _RESOLVERS
        self._levels_left = nesting
        self._line_breaks = line_breaks

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"line {line}: aliases are not allowed")
        if event.tag is not None:
            raise yaml.YAMLError(f"line {line}: tags are not allowed")
        if isinstance(event, yaml.ScalarEvent):
            seen = event.value.replace("\n", "") if self._line_breaks else event.value
            if not seen.isprintable():
                raise yaml.YAMLError(f"line {line}: {event.value!r:.80} has characters that cannot be seen")
        if self._levels_left == 0:
            raise yaml.YAMLError(f"line {line}: nested too deeply")
        self._levels_left -= 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._levels_left += 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                raise yaml.YAMLError(f"line {line}: keys must be text")
            if key.value in seen:
                raise yaml.YAMLError(f"line {line}: {key.value}: stands there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
