#!/usr/bin/env bash
# Installs what the interop checks need, once: programs from Debian, Python clients into
# a venv and Node packages, both in a cache folder outside of the repository.  Prints
# assignments for `eval`: INTEROP_PYTHON, NODE_PATH for Node's require(), and PATH.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin  # where Debian puts nginx and HAProxy

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SSE_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sse_server-ci}/interop
mkdir -p "$cache"

# program:package, where Debian's names differ from the program's.
programs=(
    chromium:chromium firefox-esr:firefox-esr nginx:nginx-light haproxy:haproxy
    curl:curl node:nodejs npm:npm
)

source "$here/../common.sh"

install_node_packages() {
    local list=$here/package.json folder=$cache/node
    cmp -s "$list" "$folder/installed-from" && return
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$list" "$folder/package.json"
    npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --silent >&2
    cp "$list" "$folder/installed-from"
}

install_programs "${programs[@]}"
install_packages "$here/requirements.txt" "$cache/venv"
install_node_packages
printf 'export INTEROP_PYTHON=%q NODE_PATH=%q PATH=%q\n' \
    "$cache/venv/bin/python" "$cache/node/node_modules" "$PATH"
