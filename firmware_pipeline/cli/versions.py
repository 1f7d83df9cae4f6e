# SPDX-License-Identifier: Apache-2.0
"""What `--version` prints: the program, then the installed versions of the libraries that carry its security."""

import platform
import ssl
from importlib.metadata import version
from typing import Final

_LIBRARIES: Final = ("oras", "requests", "urllib3", "cryptography", "pydantic")


def versions() -> str:
    """Two lines: name and version; libraries with theirs. Nothing is loaded for it."""
    libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
    return f"firmware-pipeline {version('flashjob')}\n{', '.join(libraries)}, {ssl.OPENSSL_VERSION}, Python {platform.python_version()}"
