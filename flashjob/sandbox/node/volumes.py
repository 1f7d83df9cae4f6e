# SPDX-License-Identifier: Apache-2.0
"""A pod's volumes as directories below the pod's own directory: written once, tokens renewed while the pod runs.

`emptyDir` is an empty directory. `secret`, `configMap`, `downwardAPI` and `projected` are planned by `files_of` (pure) as a
list of files; tokens are the exception: they are asked of the API server, bound to the pod, and asked for again when four
fifths of their life are over, as the kubelet does.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .environment import Objects, config_error, data_of, field_of

Json = dict[str, Any]
_DEFAULT_MODE: Final = 0o644
_RENEW_AT: Final = 0.8
_DEFAULT_TOKEN_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """One file of a volume: its path below the volume, its bytes, its mode."""

    path: str
    data: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class TokenFile:
    """One projected service-account token."""

    volume: str
    path: str
    audience: str | None
    expiration_seconds: int
    mode: int


TokenRequest = Callable[[TokenFile], Awaitable[tuple[str, datetime.datetime]]]
"""Asks the API server for a token; returns it and when it expires."""


def _items(source: Json, kind: str, name: str, objects: Objects, mode: int) -> list[VolumeFile]:
    item = objects.get((kind, name))
    if item is None:
        if source.get("optional"):
            return []
        raise config_error(f'{kind.lower()} "{name}" not found')
    data = data_of(kind, item)
    if not source.get("items"):
        return [VolumeFile(key, value, mode) for key, value in data.items()]
    files = []
    for wanted in source["items"]:
        if wanted["key"] not in data:
            if source.get("optional"):
                continue
            raise config_error(f"references non-existent {kind.lower()} key: {name}/{wanted['key']}")
        files.append(VolumeFile(wanted["path"], data[wanted["key"]], wanted.get("mode", mode)))
    return files


def _source_files(source: Json, pod: Json, objects: Objects, mode: int) -> list[VolumeFile]:
    if "secret" in source:
        secret = source["secret"]
        return _items(secret, "Secret", secret.get("secretName") or secret["name"], objects, mode)
    if "configMap" in source:
        return _items(source["configMap"], "ConfigMap", source["configMap"]["name"], objects, mode)
    if "downwardAPI" in source:
        return [
            VolumeFile(item["path"], field_of(pod, item["fieldRef"]["fieldPath"]).encode(), item.get("mode", mode))
            for item in source["downwardAPI"].get("items") or ()
        ]
    return []


def files_of(volume: Json, pod: Json, objects: Objects) -> list[VolumeFile]:
    """All files of one volume but its tokens.

    Raises:
        FlashJobError: `CreateContainerConfigError` if an object or key is missing and not optional.
    """
    kind = next(iter(volume.keys() - {"name"}), "emptyDir")
    mode = (volume.get(kind) or {}).get("defaultMode", _DEFAULT_MODE)
    sources: Iterable[Json] = volume["projected"].get("sources") or () if kind == "projected" else (volume,)
    return [file for source in sources for file in _source_files(source, pod, objects, mode)]


def tokens_of(pod: Json) -> list[TokenFile]:
    """The projected tokens that the pod asks for."""
    found = []
    for volume in pod["spec"].get("volumes") or ():
        projected = volume.get("projected") or {}
        for source in projected.get("sources") or ():
            token = source.get("serviceAccountToken")
            if token:
                seconds = token.get("expirationSeconds", _DEFAULT_TOKEN_SECONDS)
                mode = projected.get("defaultMode", _DEFAULT_MODE)
                found.append(TokenFile(volume["name"], token["path"], token.get("audience"), seconds, mode))
    return found


def renew_in_seconds(now: datetime.datetime, expires: datetime.datetime) -> float:
    """How long to keep a token that expires at `expires`; at least a second."""
    return max(1.0, (expires - now).total_seconds() * _RENEW_AT)


class Volumes:
    """The volumes of one pod on disk, below `root` (mode 0700)."""

    def __init__(self, root: Path, pod: Json) -> None:
        self._root = root
        self._pod = pod

    def directory(self, volume: str) -> Path:
        """The directory that stands for a volume."""
        return self._root / volume

    def create(self, objects: Objects) -> None:
        """Write everything but the tokens. Raises as `files_of`; may be called again after that."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for volume in self._pod["spec"].get("volumes") or ():
            files = files_of(volume, self._pod, objects)
            self.directory(volume["name"]).mkdir(exist_ok=True)
            for file in files:
                self._write(volume["name"], file)

    async def write_token(self, token: TokenFile, request: TokenRequest) -> datetime.datetime:
        """Ask for a token and put it in place; returns when it expires."""
        value, expires = await request(token)
        self._write(token.volume, VolumeFile(token.path, value.encode(), token.mode))
        return expires

    def remove(self) -> None:
        """Delete everything, tokens and Secrets included."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _write(self, volume: str, file: VolumeFile) -> None:
        base = self.directory(volume)
        target = base / file.path
        if os.path.isabs(file.path) or ".." in Path(file.path).parts:
            raise config_error(f"volume {volume}: path {file.path!r} leaves the volume")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
            output.write(file.data)
        temporary.chmod(file.mode)
        temporary.replace(target)
