# SPDX-License-Identifier: Apache-2.0
"""One Protocol, one module per way to reach a device."""
