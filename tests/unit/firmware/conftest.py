# SPDX-License-Identifier: Apache-2.0
"""Fixtures of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can get at, as `tmp_path` is not."""
    folder = Path(tempfile.mkdtemp(prefix="flashjob-cache-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
