# SPDX-License-Identifier: Apache-2.0
"""A strict verifier for OpenDICE certificate chains and EAT tokens."""
