# SPDX-License-Identifier: Apache-2.0
"""Addresses of network devices are read as everywhere else; what is none is refused with a reason."""

import pytest

from flashjob.errors import FlashJobError
from flashjob.flasher.transports.network import NetworkTransport, read_address


@pytest.mark.parametrize(
    "text", ["", "a b", "porch:", "porch:0", "porch:65536", "porch:٣", "[::1", "http://porch", "-x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(FlashJobError) as error:
        NetworkTransport(text)
    assert error.value.reason == "TransportUnsupported"
    assert repr(text) in error.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("porch", ("porch", 80, False)),
        ("https://porch", ("porch", 443, True)),
        ("192.0.2.7:81", ("192.0.2.7", 81, False)),
        ("2001:db8::1", ("2001:db8::1", 80, False)),
        ("https://[2001:db8::1]:8443", ("2001:db8::1", 8443, True)),
    ],
)
def test_host_port_and_tls(text: str, expected: tuple[str, int, bool]) -> None:
    assert read_address(text) == expected
