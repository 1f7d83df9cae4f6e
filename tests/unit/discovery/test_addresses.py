# SPDX-License-Identifier: Apache-2.0
"""Addresses have one form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.discovery.addresses import MAX_RANGE_HOSTS, Address, parse_address, parse_range, same_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.7", "192.0.2.7", 80),
        ("192.0.2.7:81", "192.0.2.7", 81),
        ("2001:DB8::0:1", "2001:db8::1", 80),
        ("[2001:db8::1]", "2001:db8::1", 80),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("Porch-1.Example.:65535", "porch-1.example", 65535),
        ("porch", "porch", 80),
    ],
)
def test_read(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)
    assert parse_address(str(parse_address(text))) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("https://192.0.2.7", Address("192.0.2.7", 443, True), "https://192.0.2.7:443"),
        ("https://Porch-1.Example:8443", Address("porch-1.example", 8443, True), "https://porch-1.example:8443"),
        ("https://[2001:db8::1]:80", Address("2001:db8::1", 80, True), "https://[2001:db8::1]:80"),
    ],
)
def test_tls_is_part_of_an_address(text: str, address: Address, written: str) -> None:
    assert parse_address(text) == address
    assert str(address) == written
    assert parse_address(written) == address
    assert address != address._replace(tls=False), "another place"


@pytest.mark.parametrize(
    "text",
    ["", ":80", "host:", "host:0", "host:65536", "host:8 0", "host:٣", "[::1", "[::1]80", "[host]:80", "a b", "-a",
     "http://a", "https://", "https://a/", "https://https://a", "HTTPS://a",
     "1.2.3", "1.2.3.4.5", "999.1.1.1", "a..b", "x" * 300, "192.0.2.7/24", "::1%eth0%x y"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_ip_address_survives(ip: object, port: int) -> None:
    address = parse_address(str(Address(str(ip), port)))
    assert address == Address(str(ip), port)
    assert address.numeric


def test_the_same_address_in_other_words() -> None:
    reached = Address("2001:db8::1", 80)
    assert same_address("2001:db8:0::1", reached)
    assert same_address("[2001:DB8::1]:80", reached)
    assert not same_address("[2001:db8::1]:81", reached)
    assert not same_address("nonsense::", reached)
    assert same_address("[2001:db8::1]:80", reached._replace(tls=True)), "a device names host and port"


@pytest.mark.parametrize(
    ("text", "first", "count"),
    [
        ("192.0.2.0/24", Address("192.0.2.1", 80), 254),
        ("192.0.2.0/30:8080", Address("192.0.2.1", 8080), 2),
        ("192.0.2.4/31", Address("192.0.2.4", 80), 2),
        ("192.0.2.4/32:81", Address("192.0.2.4", 81), 1),
        ("10.0.0.0/20", Address("10.0.0.1", 80), MAX_RANGE_HOSTS - 2),
        ("2001:db8::/116", Address("2001:db8::1", 80), MAX_RANGE_HOSTS - 1),
        ("[2001:db8::/126]:81", Address("2001:db8::1", 81), 3),
        ("https://192.0.2.0/30", Address("192.0.2.1", 443, True), 2),
        ("https://[2001:db8::/126]:81", Address("2001:db8::1", 81, True), 3),
    ],
)
def test_ranges(text: str, first: Address, count: int) -> None:
    hosts = list(parse_range(text).hosts())
    assert (hosts[0], len(hosts)) == (first, count)
    assert len(parse_range(text)) >= count


@pytest.mark.parametrize(
    "text",
    ["192.0.2.0", "192.0.2.1/24", "192.0.2.0/", "192.0.2.0/33", "192.0.2.0/-1", "192.0.2.0/255.255.255.0", "porch/24",
     "10.0.0.0/19", "2001:db8::/115", "0.0.0.0/0", "::/0", "192.0.2.0/24:", "192.0.2.0/24:0", "192.0.2.0/24:65536",
     "[2001:db8::/120]", "[2001:db8::/120]:", "[2001:db8::/120]80", "fe80::%eth0/120", "192.0.2.0/٢٤", "/24", "/"],
)  # fmt: skip
def test_no_ranges(text: str) -> None:
    with pytest.raises(ValueError):
        parse_range(text)


@given(st.text(alphabet="0123456789abcdef.:/[]%", max_size=30))
def test_any_range_is_understood_or_refused(text: str) -> None:
    try:
        found = parse_range(text)
    except ValueError:
        return
    hosts = list(found.hosts())
    assert len(hosts) <= len(found) <= MAX_RANGE_HOSTS
    assert {host.port for host in hosts} <= {found.port}
