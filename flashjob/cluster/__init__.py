# SPDX-License-Identifier: Apache-2.0
"""The only room that talks to the API server: protocol, client, reflector, work queue, leases, and a fake of them all."""
