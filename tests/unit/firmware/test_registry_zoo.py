# SPDX-License-Identifier: Apache-2.0
"""Every misbehaviour of a registry ends with its own reason; nothing is left at the final path, and no tag moves."""

from pathlib import Path

import pytest

from firmware_pipeline.errors import Reason
from firmware_pipeline.http_rules import Limits
from firmware_pipeline.oci import INDEX_TYPE, Index, to_json
from firmware_pipeline.store import Blob
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import HostileRegistry
from tests.unit.firmware.registry_zoo import DATA, DOWNLOADS, LOGINS, MANIFEST_ANSWERS, PUSHES, Script
from tests.unit.firmware.test_registry import SECRET, put, put_index, store_for

LIMITS = Limits(read_seconds=0.3, attempts=2, first_pause_seconds=0.001)


def cases(zoo: dict[str, tuple[Script, str]]) -> list[object]:
    return [pytest.param(script, Reason(reason), id=name.replace(" ", "-")) for name, (script, reason) in zoo.items()]


def test_the_zoo_is_large() -> None:
    assert len(DOWNLOADS) + len(MANIFEST_ANSWERS) + len(LOGINS) + len(PUSHES) >= 70


@pytest.mark.parametrize(("script", "reason"), cases(DOWNLOADS))
def test_a_download(script: Script, reason: Reason, tmp_path: Path) -> None:
    with HostileRegistry() as registry:
        descriptor = put(registry, DATA)
        registry.script = script
        refused(reason, lambda: store_for(registry, limits=LIMITS).save_blob(descriptor, tmp_path / "app.bin"))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("script", "reason"), cases(MANIFEST_ANSWERS))
def test_a_manifest(script: Script, reason: Reason) -> None:
    with HostileRegistry() as registry:
        put_index(registry)
        registry.script = script
        refused(reason, lambda: store_for(registry, limits=LIMITS).get_manifest("1"))


@pytest.mark.parametrize(("script", "reason"), cases(LOGINS))
def test_a_login(script: Script, reason: Reason) -> None:
    with HostileRegistry() as registry:
        put_index(registry)
        registry.script = script
        error = refused(reason, lambda: store_for(registry, credential=SECRET, limits=LIMITS).get_manifest("1"))
        assert SECRET.password not in str(error)
        assert len(registry.seen) <= 4, "a login is not tried again and again"


@pytest.mark.parametrize(("script", "reason"), cases(PUSHES))
def test_a_push(script: Script, reason: Reason) -> None:
    with HostileRegistry() as registry:
        put_index(registry, "1.0")
        tags = dict(registry.tags)
        registry.script = script
        store = store_for(registry, push=True, limits=LIMITS)
        index = to_json(Index(schema_version=2, manifests=[]))

        def push() -> None:
            store.put_blob(Blob.of(DATA))
            store.put_manifest(index, INDEX_TYPE)
            for tag in ("2.0", "1.0"):
                store.put_manifest(index, INDEX_TYPE, tag=tag)

        refused(reason, push)
        assert registry.tags == tags
