# SPDX-License-Identifier: Apache-2.0
"""Listing tokens as planning sees them."""
