# SPDX-License-Identifier: Apache-2.0
"""Whether a device speaks the device protocol (docs/device-protocol.md), asked by a good host and by a hostile one."""
