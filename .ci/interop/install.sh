#!/usr/bin/env bash
# Installs what the interop checks need, once: programs from Debian, Python clients into
# a venv and Node packages, both in a cache folder outside of the repository.  Prints
# assignments for `eval`: INTEROP_PYTHON with its PYTHONPATH, NODE_PATH, and PATH.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

install_programs chromium:chromium firefox-esr:firefox-esr nginx:nginx-light \
    haproxy:haproxy caddy:caddy curl:curl node:nodejs npm:npm
install_packages "$here/requirements.txt" "$cache/interop/venv"
install_packages "$here/package.json" "$cache/interop/node"
printf 'export INTEROP_PYTHON=%q PYTHONPATH=%q NODE_PATH=%q PATH=%q\n' \
    "$cache/interop/venv/bin/python" "$checks" "$cache/interop/node/node_modules" "$PATH"
