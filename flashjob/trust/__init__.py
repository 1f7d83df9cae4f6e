# SPDX-License-Identifier: Apache-2.0
"""Who is trusted for what, read from the cluster: attestation's Protocols on top of caches, shared by all who judge."""
