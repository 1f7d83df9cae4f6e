# SPDX-License-Identifier: Apache-2.0
"""FlashJob: Kubernetes-native firmware operations for microcontrollers."""
