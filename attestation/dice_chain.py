# SPDX-License-Identifier: Apache-2.0
"""A device's chain, whatever its certificates' form: read, linked, verified from the enrolled anchor, and remembered.

1. A certificate that begins like DER is read by ``dice_x509``, any other by ``dice_cbor``; both give one model, and all
   certificates of a chain have one form (``dice.form``). What is proved is the same in both forms.
2. Links come before signatures, signatures before descriptors (``dice_cbor.verify_chain``).
3. The first layer's descriptor is the bootloader's, the second's the application's.

A chain does not change while a device runs. ``ChainCache`` remembers those of which everything held that depends on
nothing but their bytes, the anchor, its root of trust and the policy; which rules these are, ``verifier`` says. It holds
no verdicts: whatever depends on the token, the time or the device's state is judged anew. What was refused is never in it.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final, TypeAlias

from attestation import dice_cbor, dice_x509
from attestation.anchors import DeviceAnchor
from attestation.dice_cbor import ApplicationConfig, BootloaderConfig, Certificate, LeafCertificate
from attestation.errors import Code, Reject
from attestation.keys import Alg, PublicKey
from attestation.policy import Measurement, RootOfTrust

LAYERS: Final = 2
"""Bootloader and application."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A verified chain."""

    bootloader: Certificate
    application: Certificate
    boot_config: BootloaderConfig
    app_config: ApplicationConfig
    bootloader_measurement: Measurement
    measurement: Measurement
    """Of the application."""
    leaf_key: PublicKey
    """Of the last certificate: the key that signs tokens."""
    leaf_id: bytes
    subjects: tuple[bytes, ...]
    """Ids of all certified keys, in order."""


@dataclass(frozen=True, slots=True)
class KnownChain:
    """A chain that held under one anchor, root of trust and policy, and what the trail says of its rules."""

    chain: Chain
    boot: str
    """Of the part of ``boot`` that the chain decides alone."""
    bootloader: str


ChainKey: TypeAlias = tuple[tuple[bytes, ...], bytes, RootOfTrust, bytes]
"""Certificates as received, device id (a hash of its key), root of trust, policy hash."""


class ChainCache:
    """Chains that held before: an explicit object, for threads of one process.

    Args:
        capacity: most chains held; the one unused for longest makes room. A chain takes about 6 KiB.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        if capacity < 1:
            raise ValueError("a cache holds at least one chain")
        self._capacity = capacity
        self._chains: OrderedDict[ChainKey, KnownChain] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0
        """How often a chain was known, and how often not."""

    def __len__(self) -> int:
        """How many chains are held."""
        return len(self._chains)

    def find(self, key: ChainKey) -> KnownChain | None:
        """What is remembered under this key."""
        with self._lock:
            known = self._chains.get(key)
            if known is None:
                self.misses += 1
            else:
                self.hits += 1
                self._chains.move_to_end(key)
            return known

    def remember(self, key: ChainKey, known: KnownChain) -> None:
        """Remember a chain that held."""
        with self._lock:
            self._chains[key] = known
            if len(self._chains) > self._capacity:
                self._chains.popitem(last=False)


def parse_certificate(data: bytes, *, algs: Set[Alg], compressed_ids: bool = False) -> Certificate:
    """Read the certificate of a layer, in either form (rule 1).

    Raises:
        Reject: ``dice_cbor`` or ``dice_x509`` refuse it.
    """
    parse = dice_x509.parse_certificate if _is_x509(data) else dice_cbor.parse_certificate
    return parse(data, algs=algs, compressed_ids=compressed_ids)


def parse_leaf(data: bytes, *, algs: Set[Alg], compressed_ids: bool = False) -> LeafCertificate:
    """Read the certificate of an attestation key, in either form (rule 1).

    Raises:
        Reject: ``dice_cbor`` or ``dice_x509`` refuse it.
    """
    parse = dice_x509.parse_leaf if _is_x509(data) else dice_cbor.parse_leaf
    return parse(data, algs=algs, compressed_ids=compressed_ids)


def verify(
    certificates: Sequence[bytes],
    device: DeviceAnchor,
    anchor_id: bytes,
    *,
    algs: Set[Alg],
    compressed_ids: bool = False,
) -> Chain:
    """Read and verify a chain of bootloader, application and perhaps an attestation key.

    Args:
        certificates: as received, the anchor's first; two, or three with an attestation key.
        device: the enrolled device.
        anchor_id: DICE id of its key, from the form of key that the chain's ids are made from.
        algs: accepted algorithms.
        compressed_ids: ids are made from compressed points.

    Raises:
        Reject: a rule is broken.
    """
    if len({_is_x509(certificate) for certificate in certificates}) > 1:
        raise Reject(Code.DICE_FORM, "some certificates are X.509, others CBOR")
    layers = [parse_certificate(data, algs=algs, compressed_ids=compressed_ids) for data in certificates[:LAYERS]]
    leaves = [parse_leaf(data, algs=algs, compressed_ids=compressed_ids) for data in certificates[LAYERS:]]
    links: list[Certificate | LeafCertificate] = [*layers, *leaves]
    leaf_key = dice_cbor.verify_chain(links, device.key, anchor_id=anchor_id)
    bootloader, application = layers
    return Chain(
        bootloader=bootloader,
        application=application,
        boot_config=dice_cbor.read_bootloader_config(bootloader.configuration),
        app_config=dice_cbor.read_application_config(application.configuration),
        bootloader_measurement=Measurement.of_hash(bootloader.code_hash),
        measurement=Measurement.of_hash(application.code_hash),
        leaf_key=leaf_key,
        leaf_id=links[-1].subject,
        subjects=tuple(link.subject for link in links),
    )


def _is_x509(data: bytes) -> bool:
    return data[:1] == bytes((dice_x509.FIRST_BYTE,))
