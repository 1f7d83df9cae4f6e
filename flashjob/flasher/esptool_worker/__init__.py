# SPDX-License-Identifier: GPL-2.0-or-later
"""A program of its own that drives one serial port with esptool: run it, never import it."""
