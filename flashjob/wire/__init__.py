# SPDX-License-Identifier: Apache-2.0
"""Pure models of everything that crosses a process boundary."""
