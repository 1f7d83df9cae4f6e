# SPDX-License-Identifier: Apache-2.0
"""Virtual ESP32-class devices with real semantics: flash, boot, slots, DICE, faults, adversaries."""
