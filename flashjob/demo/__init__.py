# SPDX-License-Identifier: Apache-2.0
"""Scenarios played on the sandbox."""
