# SPDX-License-Identifier: Apache-2.0
"""User names that two parts of the sandbox must agree on."""

from typing import Final

KUBELET_CLIENT: Final = "kube-apiserver-kubelet-client"
"""Common name of the certificate with which the API server reads logs from a node."""
