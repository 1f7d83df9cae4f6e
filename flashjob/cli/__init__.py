# SPDX-License-Identifier: Apache-2.0
"""Commands; each composes the parts it needs."""
