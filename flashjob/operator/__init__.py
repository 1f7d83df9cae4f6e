# SPDX-License-Identifier: Apache-2.0
"""Wiring: gather, plan, apply, one status write, events."""
