# SPDX-License-Identifier: Apache-2.0
"""A device's chain, whatever its certificates' form: read, linked, verified from the enrolled anchor, and remembered.

1. A certificate that begins like DER is read by ``dice_x509``, any other by ``dice_cbor``; both give one model, and all
   certificates of a chain have one form (``dice.form``). What is proved is the same in both forms.
2. Links come before signatures, signatures before descriptors (``dice_cbor.verify_chain``).
3. The first layer's descriptor is the bootloader's, the second's the application's.

A chain does not change while a device runs: ``ChainCache`` remembers verified ones, by their bytes, the anchor and
everything of the policy that their verification depends on. It holds no verdicts: nonce, token, device state, deny
list and all rules about what was measured are judged anew each time. A chain that was refused is never remembered.
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

LAYERS: Final = 2
"""Bootloader and application."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A verified chain."""

    bootloader: Certificate
    application: Certificate
    boot_config: BootloaderConfig
    app_config: ApplicationConfig
    leaf_key: PublicKey
    """Of the last certificate: the key that signs tokens."""
    leaf_id: bytes
    subjects: tuple[bytes, ...]
    """Ids of all certified keys, in order."""


_Key: TypeAlias = tuple[tuple[bytes, ...], bytes, bytes, frozenset[Alg]]


class ChainCache:
    """Chains that were verified before: an explicit object, for threads of one process.

    Args:
        capacity: most chains held; the one unused for longest makes room. A chain takes about 6 KiB.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        if capacity < 1:
            raise ValueError("a cache holds at least one chain")
        self._capacity = capacity
        self._chains: OrderedDict[_Key, Chain] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0
        """How often a chain was known, and how often not."""

    def __len__(self) -> int:
        """How many chains are held."""
        return len(self._chains)

    def find(self, key: _Key) -> Chain | None:
        """The chain remembered under this key."""
        with self._lock:
            chain = self._chains.get(key)
            if chain is None:
                self.misses += 1
            else:
                self.hits += 1
                self._chains.move_to_end(key)
            return chain

    def remember(self, key: _Key, chain: Chain) -> None:
        """Remember a chain that was verified."""
        with self._lock:
            self._chains[key] = chain
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
    algs: frozenset[Alg],
    compressed_ids: bool = False,
    cache: ChainCache | None = None,
) -> Chain:
    """Read and verify a chain of bootloader, application and perhaps an attestation key.

    Args:
        certificates: as received, the anchor's first; two, or three with an attestation key.
        device: the enrolled device.
        anchor_id: DICE id of its key, from the form of key that the chain's ids are made from.
        algs: accepted algorithms.
        compressed_ids: ids are made from compressed points.
        cache: chains verified before; None verifies anew.

    Raises:
        Reject: a rule is broken.
    """
    key: _Key = (tuple(certificates), device.ueid, anchor_id, algs)
    if cache is not None and (known := cache.find(key)) is not None:
        return known
    if len({_is_x509(certificate) for certificate in certificates}) > 1:
        raise Reject(Code.DICE_FORM, "some certificates are X.509, others CBOR")
    layers = [parse_certificate(data, algs=algs, compressed_ids=compressed_ids) for data in certificates[:LAYERS]]
    leaves = [parse_leaf(data, algs=algs, compressed_ids=compressed_ids) for data in certificates[LAYERS:]]
    links: list[Certificate | LeafCertificate] = [*layers, *leaves]
    leaf_key = dice_cbor.verify_chain(links, device.key, anchor_id=anchor_id)
    bootloader, application = layers
    chain = Chain(
        bootloader=bootloader,
        application=application,
        boot_config=dice_cbor.read_bootloader_config(bootloader.configuration),
        app_config=dice_cbor.read_application_config(application.configuration),
        leaf_key=leaf_key,
        leaf_id=links[-1].subject,
        subjects=tuple(link.subject for link in links),
    )
    if cache is not None:
        cache.remember(key, chain)
    return chain


def _is_x509(data: bytes) -> bool:
    return data[:1] == bytes((dice_x509.FIRST_BYTE,))
