# SPDX-License-Identifier: Apache-2.0
"""Listing tokens as planning sees them: verified with the public keys that the installation publishes.

1. The keys are in ConfigMap `flashjob-listing-keys` of the operator's namespace, PEM, one or two entries.
2. A token that does not hold says nothing; the Instance counts as one that lists no device.
3. When the keys change, every token is judged anew.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from attestation.discovery.listing import by_key_id, decode_token, verify_listing
from attestation.errors import Reject
from attestation.keys import PublicKey, from_pem
from flashjob.cluster.resources import Obj
from flashjob.planning.state import Listing
from flashjob.wire.target import Measurement

CONFIG_MAP: Final = "flashjob-listing-keys"
SCHEME: Final = "esp-image"
Keys = Mapping[bytes, PublicKey]


def read_keys(obj: Obj) -> Keys:
    """The keys in the ConfigMap, by key id.

    Raises:
        ValueError: an entry is no PEM public key.
    """
    try:
        return by_key_id(*(from_pem(text) for _, text in sorted((obj.get("data") or {}).items())))
    except Reject as error:
        raise ValueError(f"{CONFIG_MAP}: {error}") from error


def read_listing(token: str, keys: Keys) -> Listing | None:
    """What a token says, or None (rule 2)."""
    try:
        found = verify_listing(decode_token(token), keys)
    except Reject:
        return None
    return Listing(
        device=found.device_id,
        measurement=Measurement(scheme=SCHEME, alg=found.measurement.alg, value=found.measurement.value.hex()),
        boot_id=found.boot_id.hex(),
        endpoint=found.endpoint,
    )


class Listings:
    """Remembers what tokens said, as long as the Instances carry them and the keys stay."""

    def __init__(self) -> None:
        self._keys: Keys = {}
        self._said: dict[str, Listing | None] = {}

    def use(self, keys: Keys) -> None:
        """From now on these keys count (rule 3)."""
        self._keys, self._said = keys, {}

    def read(self, tokens: Iterable[str]) -> Mapping[str, Listing | None]:
        """What each of the tokens says; others are forgotten."""
        self._said = {t: self._said[t] if t in self._said else read_listing(t, self._keys) for t in set(tokens)}
        return self._said
