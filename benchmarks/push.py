# SPDX-License-Identifier: Apache-2.0
"""A push of 200 MB, every byte verified, beside the plain tools (see `benchmarks/_transfer.py`)."""

from __future__ import annotations

import sys

from benchmarks._transfer import measure
from benchmarks.common import main

if __name__ == "__main__":
    sys.exit(main("push", measure("push")))
