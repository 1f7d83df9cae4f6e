# SPDX-License-Identifier: Apache-2.0
"""What runs inside a flashing pod: fetch, preflight, write, relay evidence, report."""
