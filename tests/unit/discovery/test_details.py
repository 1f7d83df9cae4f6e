# SPDX-License-Identifier: Apache-2.0
"""Discovery details: what is understood, and a zoo of what is refused by the name of its field."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.discovery.addresses import Address
from attestation.discovery.details import MAX_BYTES, MAX_MESSAGE, DetailsError, Transport, parse_details

ROOT = Path(__file__).parents[3]
NET, TTY = Transport.NETWORK, Transport.SERIAL


def test_the_whole_of_it() -> None:
    details = parse_details(
        """
        list: Devices
        network:
          addresses: [192.0.2.7, "[2001:db8::1]:8080"]
          static: ["Porch-1.example:81"]
        applications: [porch, garden]
        attestIntervalSeconds: 60
        """,
        NET,
    )
    assert details.addresses == (Address("192.0.2.7", 80), Address("2001:db8::1", 8080), Address("porch-1.example", 81))
    assert details.attestIntervalSeconds == 60
    assert details.wants("porch")
    assert not details.wants("shed")


def test_little_is_enough() -> None:
    assert parse_details("list: Devices", NET).wants("anything")
    assert parse_details("{list: Ports, serial: {ports: ['/dev/ttyUSB*']}}", TTY).globs == ("/dev/ttyUSB*",)


def test_rule_1_what_looks_like_something_else_is_text() -> None:
    details = parse_details("{list: Devices, applications: [yes, 2026-01-01, 1e3, 0x10, =]}", NET)
    assert details.applications == ("yes", "2026-01-01", "1e3", "0x10", "=")
    assert parse_details("list: Devices\nnetwork:\n", NET).addresses == (), "as good as left out"


def test_rule_5_ranges_are_spelled_out_once() -> None:
    details = parse_details(
        "{list: Devices, network: {addresses: ['192.0.2.0/30:81', '192.0.2.1:81'], mdns: true}}", NET
    )
    assert details.addresses == (Address("192.0.2.1", 81), Address("192.0.2.2", 81))
    assert details.mdns
    assert not parse_details("{list: Devices, network: {}}", NET).mdns
    assert not parse_details("list: Devices", NET).mdns


def test_an_hour_is_the_usual_interval() -> None:
    assert parse_details("list: Devices", NET).attestIntervalSeconds == 3600


@pytest.mark.parametrize(
    ("rule", "transport", "text", "named"),
    [
        (1, NET, "", "list: required"),
        (1, NET, "[]", "list: required"),
        (1, NET, "Devices", "list: required"),
        (1, NET, "list: Devices\nlist: Devices", "list: stands there twice"),
        (1, NET, "list: Devices\n---\nlist: Devices", "plain YAML"),
        (1, NET, "list: &x Devices\napplications: [*x]", "aliases are not allowed"),
        (1, NET, "list: !!python/object/apply:os.getcwd []", "plain YAML"),
        (1, NET, "{list: Devices, applications: [!custom x]}", "plain YAML"),
        (1, NET, "list: [", "plain YAML"),
        (1, NET, "1: Devices", "keys must be text"),
        (1, NET, "? [list]\n: Devices", "keys must be text"),
        (1, NET, "list: Devices\n<<: {network: {}}", "<<: no such field"),
        (1, NET, "list: Devices\n#" + "x" * MAX_BYTES, "longer than"),
        (1, NET, "[" * 5000, "plain YAML"),
        (1, NET, "{list: Devices, attestIntervalSeconds: 2026-01-01}", "attestIntervalSeconds: give a whole number"),
        (1, NET, "{list: Devices, attestIntervalSeconds: 1:30}", "attestIntervalSeconds: give a whole number"),
        (1, NET, "{list: Devices, attestIntervalSeconds: .inf}", "attestIntervalSeconds: give a whole number"),
        (1, NET, f"{{list: Devices, attestIntervalSeconds: {'9' * 5000}}}", "attestIntervalSeconds: give a whole"),
        (1, NET, "{list: Devices, applications: !!set {a}}", "line 1: tags are not allowed"),
        (1, NET, "list: !!str Devices", "line 1: tags are not allowed"),
        (1, NET, "list: Devices\nlist: Devices", "line 2: list: stands there twice"),
        (1, NET, f"list: {'[' * 20}{']' * 20}", "nested too deeply"),
        (1, NET, "\x00", "plain YAML"),
        (1, NET, '{list: Devices, applications: ["\\uD800"]}', "cannot be seen"),
        (1, TTY, '{list: Ports, serial: {ports: ["/\\0/tty*"]}}', "cannot be seen"),
        (2, NET, "list: devices", "list: "),
        (2, NET, "list: true", "list: "),
        (2, NET, "{list: Devices, netwrok: {}}", "netwrok: no such field; there are list, network, "),
        (
            2,
            NET,
            "{list: Devices, network: {adresses: []}}",
            "adresses: no such field; there are addresses, static, mdns",
        ),
        (2, NET, "{list: Devices, network: []}", "network: give a mapping"),
        (2, NET, "{list: Devices, network: {mdns: yes}}", "network.mdns: give true or false"),
        (2, NET, "{list: Devices, network: {addresses: 192.0.2.7}}", "network.addresses: give a list"),
        (2, NET, "{list: Devices, network: {addresses: [7]}}", "network.addresses.0: give text, in quotes"),
        (2, NET, f"{{list: Devices, network: {{static: [{'a' * 30_000}]}}}}", "network.static.0: "),
        (2, NET, f"{{list: Devices, ? {'x' * 30_000} : 1}}", "discovery details: xxx"),
        (2, NET, f"{{list: Devices, applications: ['{'a' * 30_000}', *x]}}", "aliases"),
        (2, NET, "{a: 1, b: 1, c: 1, d: 1}", "; and more"),
        (2, TTY, "{list: Ports, serial: {port: /dev/x}}", "serial.ports: required; serial.port: no such field"),
        (2, NET, "{list: Devices, applications: porch}", "applications: "),
        (2, NET, "{list: Devices, applications: ['']}", "applications.0: "),
        (2, NET, "{list: Devices, attestIntervalSeconds: '60'}", "attestIntervalSeconds: "),
        (2, NET, "{list: Devices, attestIntervalSeconds: 1}", "attestIntervalSeconds: "),
        (2, NET, "{list: Devices, attestIntervalSeconds: true}", "attestIntervalSeconds: "),
        (3, TTY, "serial: {ports: [/dev/x]}", "list: "),
        (3, TTY, "{list: Ports, serial: {ports: [/dev/x]}, applications: [a]}", "applications: "),
        (3, TTY, "{list: Ports, serial: {ports: [/dev/x]}, attestIntervalSeconds: 60}", "attestIntervalSeconds: "),
        (4, NET, "{list: Ports}", "list: "),
        (4, NET, "{list: Devices, serial: {ports: [/dev/x]}}", "serial: "),
        (4, TTY, "{list: Devices, network: {}}", "network: "),
        (4, TTY, "list: Ports", "serial.ports: "),
        (4, TTY, "{list: Devices, serial: {ports: []}}", "serial.ports: "),
        (5, NET, "{list: Devices, network: {addresses: [porch-1.example]}}", "network.addresses.0: "),
        (5, NET, "{list: Devices, network: {addresses: [192.0.2.1/24]}}", "network.addresses.0: "),
        (5, NET, "{list: Devices, network: {addresses: [10.0.0.0/8]}}", "the prefix is at least /20"),
        (5, NET, "{list: Devices, network: {addresses: ['2001:db8::/64']}}", "the prefix is at least /116"),
        (5, NET, "{list: Devices, network: {addresses: [10.0.0.0/20, 192.0.2.7]}}", "addresses: 4097 hosts"),
        (5, NET, "{list: Devices, network: {static: [192.0.2.0/24]}}", "network.static.0: "),
        (5, NET, "{list: Devices, network: {static: ['http://porch']}}", "network.static.0: "),
        (5, NET, "{list: Devices, network: {static: [ok, 'host:0']}}", "network.static.1: "),
        (6, TTY, "{list: Ports, serial: {ports: [ttyUSB0]}}", "serial.ports.0: "),
        (6, TTY, "{list: Ports, serial: {ports: [/dev/../etc/*]}}", "serial.ports.0: "),
    ],
)
def test_what_is_refused(rule: int, transport: Transport, text: str, named: str) -> None:
    with pytest.raises(DetailsError) as caught:
        parse_details(text, transport)
    assert named in str(caught.value), (rule, str(caught.value))
    assert len(str(caught.value)) <= MAX_MESSAGE


def shown() -> list[Any]:
    """Every Configuration in the examples and in the document on discovery."""
    page = (ROOT / "docs" / "discovery.md").read_text()
    texts = [path.read_text() for path in (ROOT / "examples" / "configurations").glob("*.yaml")]
    texts += re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(text) for text in texts]


@pytest.mark.parametrize("configuration", shown(), ids=lambda one: one["metadata"]["name"])
def test_what_is_shown_to_people_is_understood(configuration: Any) -> None:
    handler = configuration["spec"]["discoveryHandler"]
    (transport,) = [one for one in Transport if one.handler_name == handler["name"]]
    assert parse_details(handler["discoveryDetails"], transport).list in ("Devices", "Ports")
    assert configuration["apiVersion"] == "akri.sh/v0"
    assert len(configuration["metadata"]["name"]) <= 56


def test_all_that_is_shown_is_looked_at() -> None:
    assert len(shown()) >= 4


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60), st.sampled_from(list(Transport)))
def test_any_text_is_understood_or_refused(text: str, transport: Transport) -> None:
    try:
        parse_details(text, transport)
    except DetailsError:
        return
    raise AssertionError("random text was understood")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["porch", "garden", "shed"]), max_size=3), st.integers(10, 86_400))
def test_what_is_written_is_read(applications: list[str], seconds: int) -> None:
    document = {"list": "Devices", "applications": applications, "attestIntervalSeconds": seconds}
    details = parse_details(yaml.safe_dump(document), NET)
    assert (list(details.applications), details.attestIntervalSeconds) == (applications, seconds)
