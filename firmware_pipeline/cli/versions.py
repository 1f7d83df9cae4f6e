# SPDX-License-Identifier: Apache-2.0
"""What `--version` prints: the program, then the libraries that carry its security, as they are loaded here."""

import platform
import ssl
from importlib.metadata import version

from cryptography import __version__ as cryptography_version
from cryptography.hazmat.backends.openssl import backend

import firmware_pipeline.api
import firmware_pipeline.registry  # noqa: F401  a version that cannot be loaded is none


def versions() -> str:
    """Two lines: name and version; libraries with theirs."""
    libraries = (
        f"oras {version('oras')}",
        f"requests {version('requests')}",
        f"{ssl.OPENSSL_VERSION} (TLS)",
        f"cryptography {cryptography_version}",
        f"{backend.openssl_version_text()} (signatures)",
        f"Python {platform.python_version()}",
    )
    return f"firmware-pipeline {version('flashjob')}\n{', '.join(libraries)}"
