# SPDX-License-Identifier: Apache-2.0
"""What one device is to become: the pinned part of an artifact for one chip."""

from typing import Annotated, Final

from pydantic import Field

from .base import Digest, Hex, Sha256, WireModel


class Measurement(WireModel):
    """A DICE measurement. Not an OCI digest: see docs/device-protocol.md, "Measurement"."""

    scheme: Annotated[
        str, Field(pattern=r"^(esp-image|mcuboot)$", max_length=16, description="How the bytes are delimited.")
    ]
    alg: Annotated[int, Field(ge=-65536, le=65535, description="COSE algorithm: -16 SHA-256, -44 SHA-512.")]
    value: Annotated[Hex, Field(description="The hash, lower-case hex.")]


MOST_DATA_IMAGES: Final = 32


class DataImage(WireModel):
    """An image of a data partition that `safety.data: Wipe` writes."""

    label: Annotated[
        str, Field(min_length=1, max_length=16, description="The partition's name; without one, its offset.")
    ]
    digest: Annotated[Digest, Field(description="Digest of the layer: what an application that measures it reports.")]


class Target(WireModel):
    """Pins everything about the image of one chip; gateway and handler read it here and never ask a registry."""

    repository: Annotated[
        str, Field(min_length=1, max_length=512, description="Registry host and repository, without tag.")
    ]
    index_digest: Annotated[Digest, Field(description="Digest of the signed index.")]
    manifest_digest: Annotated[Digest, Field(description="Digest of the chip's manifest.")]
    config_digest: Annotated[Digest, Field(description="Digest of the signed config.")]
    release_digest: Annotated[
        Digest | None, Field(description="Digest of the release statement's layer, where there is one.")
    ] = None
    chip: Annotated[str, Field(pattern=r"^[a-z0-9]{3,16}$", max_length=16, description="IDF target, as esp32s3.")]
    chip_id: Annotated[int, Field(ge=0, le=0xFFFF, description="Chip id in the image header.")]
    application: Annotated[
        str, Field(min_length=1, max_length=32, description="Project name in the application descriptor.")
    ]
    version: Annotated[str, Field(max_length=32, description="Version in the application descriptor.")]
    secure_version: Annotated[int, Field(ge=0, le=32, description="secure_version in the application descriptor.")]
    sequence: Annotated[
        int, Field(ge=0, description="Release sequence of the release statement; 0 where there is none.")
    ] = 0
    image_size: Annotated[int, Field(gt=0, le=64 * 1024 * 1024, description="Bytes of the application image.")]
    image_digest: Annotated[Digest, Field(description="Digest of the application layer, the payload.")]
    measurements: Annotated[
        tuple[Measurement, ...],
        Field(min_length=1, max_length=8, description="The image's measurement in every algorithm."),
    ]
    data_images: Annotated[
        tuple[DataImage, ...],
        Field(max_length=MOST_DATA_IMAGES, description="Images of data partitions, written where the job wipes data."),
    ] = ()
    partition_table: Annotated[
        Sha256 | None,
        Field(description="SHA-256 of the partition table that the image was built for, where the config names one."),
    ] = None
    plain_http: Annotated[bool, Field(alias="plainHTTP", description="Talk to the registry without TLS.")] = False
