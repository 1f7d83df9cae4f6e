# SPDX-License-Identifier: Apache-2.0
"""`python -m flashjob.cli`: the same as `flashjob`."""

from .main import main

main()
