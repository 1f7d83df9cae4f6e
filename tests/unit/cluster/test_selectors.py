# SPDX-License-Identifier: Apache-2.0
"""Selectors as the API server reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashjob.cluster.selectors import field_matcher, label_matcher, labels_equal


@pytest.mark.parametrize("selector", ["a in b", "a,=b", "(x)", "a in (", "=b", "a b"])
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(ValueError, match="not a label selector"):
        label_matcher(selector)


def test_a_field_needs_a_value() -> None:
    with pytest.raises(ValueError, match="not a field selector"):
        field_matcher("metadata.name")


def test_an_absent_field_is_empty() -> None:
    assert field_matcher("spec.nodeName=")({"spec": {}})
    assert field_matcher("spec.nodeName!=n")({})


words = st.from_regex(r"[a-z]{1,5}", fullmatch=True)


@given(st.dictionaries(words, words, max_size=4), st.dictionaries(words, words, max_size=3))
def test_equality_means_subset(labels: dict[str, str], wanted: dict[str, str]) -> None:
    obj = {"metadata": {"labels": labels}}
    assert label_matcher(labels_equal(wanted))(obj) == (wanted.items() <= labels.items())
