# SPDX-License-Identifier: Apache-2.0
"""From an eFuse key to an identity: the rules of secret.py."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from attestation import factory_list, keys, mint
from attestation.errors import Reject
from attestation.keys import Alg
from flashjob.provisioning.secret import born, uds

KEY = bytes(range(32))


def test_1_the_uds_is_what_the_peripheral_answers() -> None:
    assert uds(KEY) == hmac.new(KEY, b"FlashJob UDS 1", hashlib.sha256).digest()
    with pytest.raises(ValueError, match="32 bytes"):
        uds(KEY[:31])


@pytest.mark.parametrize("alg", [Alg.ES256, Alg.EDDSA])
def test_2_and_3_the_line_is_one_that_enrolment_takes(alg: Alg) -> None:
    one = born(uds(KEY), "b1", alg=alg, hwmodel="esp32c3")
    assert one.anchor == mint.signing_key(uds(KEY), alg).public_key()
    (listed,) = factory_list.read(factory_list.write_csv([one.entry]), "b1")
    assert keys.ueid(listed.key).hex() == one.ueid
    assert listed.hwmodel == "esp32c3"
    with pytest.raises(Reject):
        factory_list.read(factory_list.write_csv([one.entry]), "another batch")


def test_3_no_secret_is_in_what_is_left() -> None:
    secret = uds(KEY)
    one = born(secret, "b1")
    assert not any(part in repr(one).encode() + one.entry.proof for part in (KEY, secret))
