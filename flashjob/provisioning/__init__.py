# SPDX-License-Identifier: Apache-2.0
"""How a chip comes to have a secret, its protections and its owner's keys; and the proof of it for the factory list."""
