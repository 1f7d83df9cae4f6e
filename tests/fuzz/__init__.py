# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets: every parser that meets foreign bytes, and the verdict; two engines, one list of targets."""
