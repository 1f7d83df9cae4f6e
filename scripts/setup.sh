#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes .venv with pinned, hash-checked requirements and installs this tree into it. Repeats nothing that is done, and
# begins anew where it was interrupted, where the tree was moved, or where the Python below it has gone.
set -eu
cd "$(dirname "$0")/.."
needed_mb=1200
python=${PYTHON:-python3}
end() { printf '%s\n' "$*" >&2; exit 2; }

command -v "$python" >/dev/null 2>&1 || end "FlashJob needs Python 3.11 or newer: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  end "FlashJob needs Python 3.11 or newer, and $python is $("$python" -V 2>&1): set PYTHON to a newer one"

stamp=.venv/.flashjob-stamp
wanted="$(cat requirements/dev.txt pyproject.toml | cksum) $(pwd)"
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

"$python" -c 'import ensurepip, venv' 2>/dev/null || end "FlashJob needs Python's venv module: apt-get install python3-venv"
[ -w . ] || end "FlashJob keeps its Python packages in $(pwd)/.venv, which $(id -un) cannot write: clone it into a directory of yours"
free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
[ -d .venv ] || [ "$free_mb" -ge "$needed_mb" ] ||
  end "FlashJob needs $needed_mb MB for its Python packages, $free_mb MB are free in $(pwd): free some space"

printf '%s\n' "Setting up .venv (once; about a minute)" >&2
here=$(cat .venv/.flashjob-place 2>/dev/null || pwd)
if [ "$here" != "$(pwd)" ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear .venv
fi
pwd > .venv/.flashjob-place
rm -f "$stamp"
pip() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
pip --require-hashes -r requirements/dev.txt && pip --no-deps --no-build-isolation --editable . ||
  end "pip could not install FlashJob's packages (its own words are above): check the network, PIP_INDEX_URL or the disk, then try again"
.venv/bin/python -m compileall -q flashjob firmware_pipeline attestation
printf '%s' "$wanted" > "$stamp"
