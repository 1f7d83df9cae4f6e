# SPDX-License-Identifier: Apache-2.0
"""Pure: decides what may start, what is retried, what is over. Never awaits, never reads a clock."""
