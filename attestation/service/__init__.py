# SPDX-License-Identifier: Apache-2.0
"""The verifier as an HTTP service for relying parties: nonces, and signed results of attestation.

| module | what is in it |
|---|---|
| ``app`` | the paths and their rules |
| ``judge`` | the verdict of one request, without HTTP |
| ``trust`` | the trust directory, re-read when its files change |
| ``keyring`` | the service's own keys, re-read when their files change |
| ``used`` | used nonces, for one process and for several |
| ``limits`` | how much may be asked at once, and by whom |
| ``audit``, ``metrics``, ``problems`` | what it tells people |
| ``server`` | sockets, signals, draining |

Needs aiohttp and prometheus-client: ``pip install 'flashjob[service]'``.
"""
