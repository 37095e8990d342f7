#!/usr/bin/env bash
# Installs the frameworks and their servers, once, into a venv in a cache folder outside
# of the repository.  Prints assignments for `eval`: FRAMEWORKS_PYTHON with its PYTHONPATH.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

install_packages "$here/requirements.txt" "$cache/frameworks/venv"
printf 'export FRAMEWORKS_PYTHON=%q PYTHONPATH=%q\n' \
    "$cache/frameworks/venv/bin/python" "$checks"
