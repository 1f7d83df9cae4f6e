# SPDX-License-Identifier: Apache-2.0
"""Build systems' outputs, each reduced to one BuildPlan."""
