# SPDX-License-Identifier: Apache-2.0
"""An Akri discovery handler that lists only what has proven itself."""
