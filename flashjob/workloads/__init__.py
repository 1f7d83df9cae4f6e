# SPDX-License-Identifier: Apache-2.0
"""Desired pods: pure builders."""
