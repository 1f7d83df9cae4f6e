# SPDX-License-Identifier: Apache-2.0
"""Announcements: which of them are places to look at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.discovery import mdns
from attestation.discovery.addresses import Address

TXT = {b"v": b"1", b"id": b"01" * 33}


@pytest.mark.parametrize(
    ("addresses", "found"),
    [
        (["192.0.2.7"], "192.0.2.7"),
        (["2001:db8::7", "192.0.2.7", "192.0.2.8"], "192.0.2.7"),
        (["fe80::1%3", "2001:db8::7"], "2001:db8::7"),
    ],
)
def test_rule_2_one_address_of_each(addresses: list[str], found: str) -> None:
    assert mdns.where(TXT, addresses, 8080) == Address(found, 8080)


@pytest.mark.parametrize(
    ("said", "tls"), [({}, False), ({b"tls": b"1"}, True), ({b"tls": b"0"}, False), ({b"tls": None}, False)]
)
def test_rule_2_tls_is_spoken_where_it_is_announced(said: dict[bytes, bytes | None], tls: bool) -> None:
    assert mdns.where(TXT | said, ["192.0.2.7"], 8443) == Address("192.0.2.7", 8443, tls)


@pytest.mark.parametrize(
    ("properties", "addresses", "port"),
    [
        ({}, ["192.0.2.7"], 80),
        ({b"v": b"2"}, ["192.0.2.7"], 80),
        ({b"v": None}, ["192.0.2.7"], 80),
        (TXT, [], 80),
        (TXT, ["fe80::1%3", "fe80::2"], 80),
        (TXT, ["192.0.2.7"], None),
        (TXT, ["192.0.2.7"], 0),
    ],
)
def test_rule_2_what_is_left_out(properties: dict[bytes, bytes | None], addresses: list[str], port: int | None) -> None:
    assert mdns.where(properties, addresses, port) is None


@given(st.lists(st.ip_addresses(), max_size=4), st.integers(1, 65535))
def test_whatever_is_found_was_announced(addresses: list[object], port: int) -> None:
    said = [str(address) for address in addresses]
    found = mdns.where(TXT, said, port)
    assert found is None or (found.host in said and found.port == port)
