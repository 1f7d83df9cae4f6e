# SPDX-License-Identifier: Apache-2.0
"""The four kinds as pydantic models, their conditions and reasons; the CRDs are generated from here."""
