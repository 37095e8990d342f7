#!/usr/bin/env bash
# Installs what the checks at scale need, once: programs from Debian, and Python packages
# into a venv in a cache folder outside of the repository.  Prints assignments for `eval`:
# SCALE_PYTHON, and a PATH with Debian's folders for servers.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SSE_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sse_server-ci}/scale

# program:package
programs=(
    redis-server:redis-server nginx:nginx-light caddy:caddy curl:curl ip:iproute2
    unshare:util-linux openssl:openssl systemd-analyze:systemd pg_lsclusters:postgresql
)

missing=()
for entry in "${programs[@]}"; do
    command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
done
if ((${#missing[@]})); then
    sudo=()
    [[ $(id -u) == 0 ]] || sudo=(sudo)
    "${sudo[@]}" apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" \
        apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
fi

list=$here/requirements.txt venv=$cache/venv
if ! cmp -s "$list" "$venv/installed-from"; then
    rm -rf "$venv"
    mkdir -p "$cache"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install -qq --disable-pip-version-check -r "$list" >&2
    cp "$list" "$venv/installed-from"
fi

printf 'export SCALE_PYTHON=%q PATH=%q\n' "$venv/bin/python" "$PATH"
