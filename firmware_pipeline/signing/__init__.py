# SPDX-License-Identifier: Apache-2.0
"""cosign formats and release statements, offline."""
