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

source "$here/../common.sh"
install_programs "${programs[@]}"
install_packages "$here/requirements.txt" "$cache/venv"

printf 'export SCALE_PYTHON=%q PATH=%q\n' "$cache/venv/bin/python" "$PATH"
