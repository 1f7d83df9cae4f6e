# SPDX-License-Identifier: Apache-2.0
"""Build outputs of the tool chains, all reduced to one BuildPlan."""
