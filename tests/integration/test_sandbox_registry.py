# SPDX-License-Identifier: Apache-2.0
"""The registry goes and comes back under the same address, with what it had."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import requests

from flashjob.sandbox import programs
from flashjob.sandbox.registry import Registry
from flashjob.sandbox.toolchain import build

pytestmark = pytest.mark.integration


def test_halt_resume_restart_delete(tmp_path: Path) -> None:
    binary = build(programs.REGISTRY, os.environ)
    blob = b"firmware"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    with Registry.start(tmp_path, binary=binary) as registry:
        base = f"http://{registry.host}/v2/team/porch/blobs"
        where = requests.post(f"{base}/uploads/", timeout=10).headers["Location"]
        url = requests.compat.urljoin(base, where)
        put = requests.put(url, params={"digest": digest}, data=blob, timeout=10)
        assert put.status_code == 201
        registry.halt()
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{base}/{digest}", timeout=10)
        registry.resume()
        assert requests.get(f"{base}/{digest}", timeout=10).content == blob
    with Registry.start(tmp_path, binary=binary) as registry:
        base = f"http://{registry.host}/v2/team/porch/blobs"
        assert requests.get(f"{base}/{digest}", timeout=10).content == blob
        assert requests.delete(f"{base}/{digest}", timeout=10).status_code == 202
        assert requests.get(f"{base}/{digest}", timeout=10).status_code == 404
