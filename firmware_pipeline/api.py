# SPDX-License-Identifier: Apache-2.0
"""The library. Operator, flasher and CLI use these functions and nothing beside them.

    pushed = push(plans, "registry.example/porch:2.1.0", signer=..., release=...)     # pushing
    joined = index([one, other], "registry.example/porch:2.1.0", signer=...)
    pulled = pull("registry.example/porch:2.1.0", "esp32s3", folder, keys=...)        # pulling
    copied = copy(source, target, keys=...)
    report = inspect("registry.example/porch:2.1.0")                                 # inspection
    changes = diff(one, other)

    store = open_store("registry.example/porch:2.1.0", options)                      # opening, step by step
    digest = resolve(store, reference)                       # once; pin it
    verified = verify(store, digest, keys, threshold=1)      # signatures, then the index
    chip = open_chip(store, digest, "esp32s3")               # manifest, config, release statement
    fetch_layer(store, chip.app, path, progress)             # one image, checked

Synchronous; stores may be used from several threads. Every function raises PipelineError with a stable reason.
"""

from firmware_pipeline.artifact import ChipArtifact, Layer
from firmware_pipeline.comparison import Change
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.inspection import Inspection, diff, inspect
from firmware_pipeline.opening import (
    DEFAULT_OPTIONS,
    VerifiedIndex,
    fetch_layer,
    locate,
    open_chip,
    open_index,
    open_manifest,
    open_store,
    read_layer,
    resolve,
    verify,
    verify_policy,
)
from firmware_pipeline.pulling import Copied, Pulled, copy, pull
from firmware_pipeline.pushing import Preview, Pushed, PushedChip, Release, index, preview, push
from firmware_pipeline.signing.policy import VerificationPolicy

__all__ = [
    "DEFAULT_OPTIONS",
    "Change",
    "ChipArtifact",
    "ClientOptions",
    "Copied",
    "Inspection",
    "Layer",
    "Preview",
    "Pulled",
    "Pushed",
    "PushedChip",
    "Release",
    "VerificationPolicy",
    "VerifiedIndex",
    "copy",
    "diff",
    "fetch_layer",
    "index",
    "inspect",
    "locate",
    "open_chip",
    "open_index",
    "open_manifest",
    "open_store",
    "preview",
    "pull",
    "push",
    "read_layer",
    "resolve",
    "verify",
    "verify_policy",
]
