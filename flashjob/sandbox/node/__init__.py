# SPDX-License-Identifier: Apache-2.0
"""The node agent: what a kubelet is to a cluster, for our own entry points only, without root and without containers."""
