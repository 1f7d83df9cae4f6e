# SPDX-License-Identifier: Apache-2.0
"""Discovery details: what a Configuration asks this handler to list. Pure.

    list: Devices                       # or Ports
    network: {addresses: [192.0.2.7, 198.51.100.0/24], static: ["porch-1.example:8080"], mdns: true}
    serial: {ports: ["/dev/ttyUSB*"]}
    applications: [porch-sensor]
    attestIntervalSeconds: 3600

Rules (tests name them):

1. The text is one YAML mapping of at most 64 KiB, by the rules of ``plain_yaml``: plain values, no duplicate key, alias,
   tag, second document, nor a character that cannot be seen.
2. Unknown fields and wrong types are refused; every refusal names the field, and says what belongs there. It is at most
   `MAX_MESSAGE` characters long: it travels in a header.
3. `list` is required. Ports are listed by `serial.ports` alone: `network`, `applications` and `attestIntervalSeconds`
   belong to Devices.
4. The network handler lists Devices and takes `network`; the serial handler takes `serial` and needs at least one glob.
   Addresses of enrolled Devices need not be given.
5. `network.addresses` are IP addresses or ranges of them (CIDR), at most 4,096 hosts in all; `network.static` may be
   names; a port other than 80 is given as host:port or network/prefix:port. `https://` before it: TLS is spoken there,
   at port 443 unless given. `network.mdns` looks wherever somebody announces `_flashjob._tcp`.
6. A glob is absolute and has no `..`.
7. There are no discovery properties (`discoveryProperties` of the Configuration), and nobody shall believe that one counts.
8. A device is listed if `applications` holds its certified project name; an empty list holds any.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from itertools import chain
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from attestation import plain_yaml
from attestation.discovery.addresses import MAX_RANGE_HOSTS, Address, is_range, parse_address, parse_range

MAX_BYTES: Final = 64 * 1024
MAX_MESSAGE: Final = 1000
_MAX_NESTING: Final = 8
_MOST_ERRORS: Final = 3
DEFAULT_INTERVAL_SECONDS: Final = 3600


class Transport(StrEnum):
    """Which handler this is: one per cluster for the network, one per node for serial ports."""

    NETWORK = "network"
    SERIAL = "serial"

    @property
    def handler_name(self) -> str:
        """What Configurations call it in `discoveryHandler.name`."""
        return f"flashjob-{self.value}"

    @property
    def shared(self) -> bool:
        """Whether every node sees the same devices."""
        return self is Transport.NETWORK


class DetailsError(ValueError):
    """Details that this handler cannot follow; the message names the field."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def _hosts(text: str) -> Iterator[Address]:
    return parse_range(text).hosts() if is_range(text) else iter((parse_address(text),))


def _ip(text: str) -> str:
    if is_range(text):
        parse_range(text)
    elif not parse_address(text).numeric:
        raise ValueError(f"{text!r} is neither an IP address nor a range of them; names go into network.static")
    return text


def _address(text: str) -> str:
    parse_address(text)
    return text


def _glob(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"{text!r} is not an absolute path without '..'")
    return text


_Text = Annotated[str, Field(max_length=300)]


class Network(_Strict):
    """Where devices may be, besides the addresses of enrolled Devices."""

    addresses: Annotated[tuple[Annotated[_Text, AfterValidator(_ip)], ...], Field(max_length=1024)] = ()
    static: Annotated[tuple[Annotated[_Text, AfterValidator(_address)], ...], Field(max_length=1024)] = ()
    mdns: bool = False

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        count = sum(len(parse_range(text)) if is_range(text) else 1 for text in self.addresses)
        if count > MAX_RANGE_HOSTS:
            raise ValueError(
                f"addresses: {count} hosts, at most {MAX_RANGE_HOSTS}; make several Configurations of them"
            )
        return self


class Serial(_Strict):
    """Which serial ports."""

    ports: Annotated[
        tuple[Annotated[str, Field(max_length=256), AfterValidator(_glob)], ...],
        Field(min_length=1, max_length=64),
    ]


class Details(_Strict):
    """What one Configuration wants."""

    list: Literal["Ports", "Devices"]
    network: Network | None = None
    serial: Serial | None = None
    applications: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=32)], ...], Field(max_length=64)] = ()
    attestIntervalSeconds: Annotated[int, Field(ge=10, le=86_400)] = DEFAULT_INTERVAL_SECONDS

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.list == "Ports":
            for name in ("network", "applications", "attestIntervalSeconds"):
                if name in self.model_fields_set:
                    raise ValueError(f"{name}: belongs to list: Devices, not to list: Ports")
        return self

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All given addresses, ranges spelled out."""
        network = self.network or Network()
        return tuple(dict.fromkeys(chain.from_iterable(map(_hosts, (*network.addresses, *network.static)))))

    @property
    def mdns(self) -> bool:
        """Whether announced addresses count, too."""
        return self.network is not None and self.network.mdns

    @property
    def globs(self) -> tuple[str, ...]:
        """All given globs."""
        return self.serial.ports if self.serial else ()

    def wants(self, application: str) -> bool:
        """Rule 8."""
        return not self.applications or application in self.applications


def parse_details(text: str, transport: Transport) -> Details:
    """Read discovery details.

    Args:
        text: `discoveryDetails` of the Configuration.
        transport: which handler is asked.

    Raises:
        DetailsError: rules 1 to 6.
    """
    document = _load(text)
    try:
        details = Details.model_validate_json(json.dumps(document))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        said = "; ".join(map(_explained, errors[:_MOST_ERRORS]))
        raise _refused(f": {said}{'; and more' if len(errors) > _MOST_ERRORS else ''}") from error
    _check_transport(details, transport)
    return details


def check_properties(names: Collection[str]) -> None:
    """Raises DetailsError where there are discovery properties (rule 7)."""
    if names:
        raise DetailsError("discoveryProperties: this handler takes none; what it can be told is in its details")


def _refused(message: str) -> DetailsError:
    """Rule 2."""
    whole = f"discovery details{message}"
    return DetailsError(whole if len(whole) <= MAX_MESSAGE else f"{whole[: MAX_MESSAGE - 3]}...")


_MODELS: Final[Mapping[tuple[int | str, ...], type[BaseModel]]] = {
    (): Details,
    ("network",): Network,
    ("serial",): Serial,
}
_WANTED: Final = {
    "bool_type": "give true or false",
    "int_type": "give a whole number",
    "missing": "required",
    "model_type": "give a mapping of fields",
    "string_type": "give text, in quotes where it looks like a number",
    "too_short": "give at least one",
    "tuple_type": "give a list, as [one, another]",
}


def _explained(error: Any) -> str:
    """One error of pydantic: the field, and what belongs there."""
    where, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        what = f"no such field; there are {', '.join(_MODELS[where[:-1]].model_fields)}"
    else:
        what = _WANTED.get(kind, str(error["msg"]).removeprefix("Value error, "))
    return ": ".join(filter(None, (".".join(map(str, where)), what)))


def _check_transport(details: Details, transport: Transport) -> None:
    name = transport.handler_name
    if transport is Transport.NETWORK:
        if details.list == "Ports":
            raise _refused(f": list: {name} lists Devices; Ports are listed by flashjob-serial")
        if details.serial is not None:
            raise _refused(f": serial: belongs to flashjob-serial, this is {name}")
        return
    if details.network is not None:
        raise _refused(f": network: belongs to flashjob-network, this is {name}")
    if details.serial is None:
        raise _refused(": serial.ports: give at least one glob, as /dev/ttyUSB*")


def _load(text: str) -> dict[str, Any]:
    if len(text.encode()) > MAX_BYTES:
        raise _refused(f": longer than {MAX_BYTES} bytes")
    try:
        document = plain_yaml.load(text, nesting=_MAX_NESTING)
    except ValueError as error:
        raise _refused(f" are not plain YAML: {error}") from error
    if not isinstance(document, dict):
        raise _refused(": list: required, one of Ports, Devices")
    return document
