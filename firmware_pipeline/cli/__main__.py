# SPDX-License-Identifier: Apache-2.0
"""`python -m firmware_pipeline.cli`."""

from firmware_pipeline.cli import main

main()
