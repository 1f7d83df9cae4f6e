#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes .venv with pinned, hash-checked requirements and installs this tree into it. Repeats nothing that is done.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
say() { printf '%s\n' "$*" >&2; }
command -v "$python" >/dev/null 2>&1 || { say "FlashJob needs Python 3.11 or newer: apt-get install python3 python3-venv"; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  say "FlashJob needs Python 3.11 or newer, and $python is $("$python" -V 2>&1): set PYTHON to a newer one"; exit 2; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || { say "FlashJob needs Python's venv module: apt-get install python3-venv"; exit 2; }
stamp=.venv/.flashjob-stamp
wanted=$(cat requirements/dev.txt pyproject.toml | cksum)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
say "Setting up .venv (once; about a minute)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
.venv/bin/python -m compileall -q flashjob firmware_pipeline attestation
printf '%s' "$wanted" > "$stamp"
