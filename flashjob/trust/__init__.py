# SPDX-License-Identifier: Apache-2.0
"""The attestation package's Protocols on top of the cluster, or of a directory."""
