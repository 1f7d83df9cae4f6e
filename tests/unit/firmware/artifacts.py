# SPDX-License-Identifier: Apache-2.0
"""A small signed artifact for several chips, pushed wherever a test wants it."""

import functools
import tempfile
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from firmware_pipeline import api
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.signing.keys import LocalSigner, TrustedKey
from tests.unit.firmware import builds

SIGNER: Final = LocalSigner(ec.derive_private_key(7, ec.SECP256R1()))
TRUSTED: Final = [TrustedKey("ci", SIGNER.public_key)]
RELEASE: Final = api.Release(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), 21)
CHIPS: Final = ("esp32s3", "esp32c3")
PLAIN: Final = ClientOptions(plain_http=True)


def push_to(where: str, **more: Any) -> api.Pushed:
    """Push a release for `CHIPS`."""
    return api.push(_plans(), where, signer=more.pop("signer", SIGNER), release=RELEASE, options=PLAIN, **more)


@functools.cache
def _plans() -> list[BuildPlan]:
    made = []
    for chip in CHIPS:
        with tempfile.TemporaryDirectory() as folder:
            made.append(builds.plan(Path(folder), chip))
    return made
