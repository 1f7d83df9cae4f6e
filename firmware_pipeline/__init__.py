# SPDX-License-Identifier: Apache-2.0
"""Firmware as signed OCI artifacts: inputs, packaging, signing, registry, verification."""
