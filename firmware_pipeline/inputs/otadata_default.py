# SPDX-License-Identifier: Apache-2.0
"""The OTA data that Arduino and PlatformIO flash from their packages, outside any build folder: it selects ota_0."""

from firmware_pipeline.esp.otadata import OtaRecord, SlotState, blank_otadata, write_record


def first_slot() -> bytes:
    """Two sectors: one record with sequence 1 and no state, and a blank sector."""
    return write_record(blank_otadata(), 0, OtaRecord(1, SlotState.UNDEFINED, b"\xff" * 20).to_bytes())
