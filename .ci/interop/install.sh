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

install_programs() {
    local missing=() entry
    for entry in "${programs[@]}"; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
    done
    if ((${#missing[@]})); then
        local sudo=()
        [[ $(id -u) == 0 ]] || sudo=(sudo)
        "${sudo[@]}" apt-get update -q >&2
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" \
            apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
    fi
}

# unchanged LIST FOLDER: whether FOLDER was filled from exactly this LIST.
unchanged() { cmp -s "$1" "$2/installed-from"; }

install_python_clients() {
    local list=$here/requirements.txt venv=$cache/venv
    unchanged "$list" "$venv" && return
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install -qq --disable-pip-version-check -r "$list" >&2
    cp "$list" "$venv/installed-from"
}

install_node_packages() {
    local list=$here/package.json folder=$cache/node
    unchanged "$list" "$folder" && return
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$list" "$folder/package.json"
    npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --silent >&2
    cp "$list" "$folder/installed-from"
}

install_programs
install_python_clients
install_node_packages
printf 'export INTEROP_PYTHON=%q NODE_PATH=%q PATH=%q\n' \
    "$cache/venv/bin/python" "$cache/node/node_modules" "$PATH"
