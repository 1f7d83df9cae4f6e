# SPDX-License-Identifier: Apache-2.0
"""An artifact as other tools read it: images with a manifest for ESP Web Tools, or with an esptool argument file.

Images are written as they were signed: esptool is told to keep the flash settings in their headers, so that what it writes
has the digests and measurements of the artifact. Images to be encrypted by the writer are refused: neither file can say so.

Sources: ESP Web Tools' manifest format; `esptool write-flash @flash_args`.
"""

import json
from pathlib import Path

from firmware_pipeline.artifact import ChipArtifact, chips
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.opening import fetch_layer, open_chip, open_index
from firmware_pipeline.store import ArtifactStore, atomic_file


def write_esp_web_tools(store: ArtifactStore, digest: str, folder: Path) -> Path:
    """Write all chips' images and `manifest.json` into `folder`; returns the manifest's path.

    Raises:
        PipelineError: EncryptionMismatch; as `open_chip` and `fetch_layer`.
    """
    found = _fetch(store, digest, folder)
    app = found[0].config.app
    builds = [
        {
            "chipFamily": by_target(chip.target).display,
            "parts": [{"path": layer.title, "offset": layer.image.offset} for layer in chip.layers],
        }
        for chip in found
    ]
    path = folder / "manifest.json"
    _write(path, json.dumps({"name": app.project_name, "version": app.version, "builds": builds}, indent=2))
    return path


def write_flash_args(store: ArtifactStore, digest: str, folder: Path) -> list[Path]:
    """Write all chips' images and for each `<chip>/flash_args`, to be used in that folder; returns their paths.

    Raises:
        PipelineError: as `write_esp_web_tools`.
    """
    paths = []
    for chip in _fetch(store, digest, folder):
        lines = ["--flash-mode keep --flash-freq keep --flash-size keep"]
        lines += [f"{layer.image.offset:#x} {layer.title.rpartition('/')[2]}" for layer in chip.layers]
        paths.append(folder / chip.target / "flash_args")
        _write(paths[-1], "\n".join(lines))
    return paths


def _fetch(store: ArtifactStore, digest: str, folder: Path) -> list[ChipArtifact]:
    found = [open_chip(store, digest, name) for name in chips(open_index(store, digest))]
    for chip in found:
        for layer in chip.layers:
            if layer.image.encrypt:
                raise PipelineError(
                    Reason.EncryptionMismatch,
                    f"{layer.title} is to be encrypted by the writer, and these files have no way to say so.",
                    "Flash it with `flashjob flash`, or push a build without per-image encryption.",
                )
    for chip in found:
        for layer in chip.layers:
            fetch_layer(store, layer, folder / layer.title)
    return found


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as sink:
        sink.write(text.encode() + b"\n")
