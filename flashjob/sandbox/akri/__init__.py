# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Akri agent: the same gRPC towards discovery handlers, the same Instances towards the cluster."""
