# SPDX-License-Identifier: Apache-2.0
"""The generated Akri stubs are the ones that discovery.proto describes, and have Akri's wire form."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from attestation.discovery.akri_v0 import discovery_pb2
from attestation.discovery.akri_v0.generate import MODULES, PACKAGE, generate


def _without_versions(text: str) -> list[str]:
    """Generated code without the lines that name the generator's own version."""
    return [
        line
        for line in text.splitlines()
        if not any(part.strip().isdigit() for part in line.split(","))
        and "VERSION = '" not in line
        and "Protobuf Python Version" not in line
    ]


def test_generated_modules_match_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    assert generate(tmp_path) == 0
    for module in MODULES:
        committed = Path(str(files("attestation.discovery.akri_v0"))) / module
        fresh = (tmp_path / PACKAGE / module).read_text(encoding="utf-8")
        assert _without_versions(committed.read_text(encoding="utf-8")) == _without_versions(fresh)


def test_wire_form_of_a_registration() -> None:
    request = discovery_pb2.RegisterDiscoveryHandlerRequest(
        name="flashjob", endpoint="/s", endpoint_type="NETWORK", shared=True
    )
    assert request.SerializeToString() == b"\x0a\x08flashjob\x12\x02/s\x18\x01\x20\x01"


def test_property_without_a_value_differs_from_an_empty_one() -> None:
    absent, empty = discovery_pb2.ByteData(), discovery_pb2.ByteData(vec=b"")
    assert not absent.HasField("vec")
    assert empty.HasField("vec")
    assert empty.SerializeToString() == b"\x0a\x00"


def test_package_is_v0() -> None:
    names = set(discovery_pb2.DESCRIPTOR.services_by_name)
    assert {service.full_name for service in discovery_pb2.DESCRIPTOR.services_by_name.values()} == {
        "v0.Registration",
        "v0.DiscoveryHandler",
    }
    assert names == {"Registration", "DiscoveryHandler"}
