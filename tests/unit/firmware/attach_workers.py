# SPDX-License-Identifier: Apache-2.0
"""What processes of their own do in the tests of concurrent attaching."""

import multiprocessing
from multiprocessing.synchronize import Barrier

from cryptography.hazmat.primitives.asymmetric import ec

from firmware_pipeline.attachments import attach, other_file
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.oci import Descriptor
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.registry import RegistryStore
from firmware_pipeline.signing.keys import LocalSigner
from firmware_pipeline.signing.sign import sign

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def signer(number: int) -> LocalSigner:
    """A key for each worker."""
    return LocalSigner(ec.derive_private_key(100 + number, ec.SECP256R1()))


def attach_and_sign(host: str, subject: Descriptor, number: int, barrier: Barrier) -> None:
    """One more note and one more signature, when all are ready."""
    store = RegistryStore(parse_reference(f"{host}/team/porch:1"), ClientOptions(plain_http=True), push=True)
    barrier.wait()
    attach(store, [subject], other_file(b"%d" % number, "note", "text/plain"), None, "porch")
    sign(store, subject, signer(number), "porch")
