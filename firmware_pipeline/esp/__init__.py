# SPDX-License-Identifier: Apache-2.0
"""ESP-IDF formats: parse and check, never trust."""
