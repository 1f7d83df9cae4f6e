# SPDX-License-Identifier: Apache-2.0
"""``python -m attestation.cli``."""

from attestation.cli import main

main()
