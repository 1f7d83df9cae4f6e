# SPDX-License-Identifier: Apache-2.0
"""The embedded default: a real control plane, a real registry, pods as processes, a stand-in Akri agent."""
