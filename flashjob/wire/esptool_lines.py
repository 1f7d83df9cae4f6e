# SPDX-License-Identifier: Apache-2.0
"""The lines between the flasher and its esptool program: one JSON job in, JSON events out, one per line."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from .base import Blob, WireModel
from .serial import SerialSettings


class Region(WireModel):
    """A stretch of flash to be written from a file, or read."""

    offset: Annotated[int, Field(ge=0)]
    file: Annotated[str | None, Field(max_length=4096)] = None
    size: Annotated[int, Field(ge=0, description="Bytes to read; ignored for writes.")] = 0


class Job(SerialSettings):
    """What the esptool program shall do with one port."""

    verb: Literal["probe", "write", "read", "reset"]
    port: Annotated[str, Field(min_length=1, max_length=4096)]
    chip: Annotated[str, Field(max_length=16, description="IDF target that must be found; empty: any.")] = ""
    regions: tuple[Region, ...] = ()
    erase: tuple[Region, ...] = ()
    connect_attempts: Annotated[int, Field(ge=1, le=10)] = 3


class StageEvent(WireModel):
    """The program goes on to a next step."""

    event: Literal["stage"] = "stage"
    name: str


class ProgressEvent(WireModel):
    """How far the write of one region is, in bytes of flash; what it held already counts as done.

    `written` is what the whole job wrote so far.
    """

    event: Literal["progress"] = "progress"
    region: int
    done: int
    total: int
    percent: int
    written: int = 0


class ChipEvent(WireModel):
    """The live chip."""

    event: Literal["chip"] = "chip"
    chip: str
    revision: int
    mac: str
    flash_size: int
    secure_boot: bool
    flash_encryption: bool
    secure_download: bool


class DataEvent(WireModel):
    """Bytes read from flash."""

    event: Literal["data"] = "data"
    offset: int
    data: Blob


class DoneEvent(WireModel):
    """The end of a job that went well."""

    event: Literal["done"] = "done"
    bytes_written: int = 0


class ErrorEvent(WireModel):
    """The end of a job that failed; `kind` is a wire Reason."""

    event: Literal["error"] = "error"
    kind: str
    message: str
    bytes_written: int = 0


Event = Annotated[
    StageEvent | ProgressEvent | ChipEvent | DataEvent | DoneEvent | ErrorEvent, Field(discriminator="event")
]
EVENTS: TypeAdapter[StageEvent | ProgressEvent | ChipEvent | DataEvent | DoneEvent | ErrorEvent] = TypeAdapter(Event)
