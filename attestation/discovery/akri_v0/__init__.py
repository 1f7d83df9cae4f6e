# SPDX-License-Identifier: Apache-2.0
"""Akri's discovery interface, version 0: messages and stubs generated from discovery.proto beside this file."""
