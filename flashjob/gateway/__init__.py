# SPDX-License-Identifier: Apache-2.0
"""The HTTP door for flashing pods and, in judge.py, the pure judge behind it."""
