#!/usr/bin/env bash
# Installs what the checks at scale need, once: programs from Debian, and Python packages
# into a venv in a cache folder outside of the repository.  Prints assignments for `eval`:
# SCALE_PYTHON with its PYTHONPATH, and a PATH with Debian's folders for servers.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

install_programs redis-server:redis-server nginx:nginx-light caddy:caddy curl:curl \
    ip:iproute2 unshare:util-linux openssl:openssl systemd-analyze:systemd \
    pg_lsclusters:postgresql
install_packages "$here/requirements.txt" "$cache/scale/venv"
printf 'export SCALE_PYTHON=%q PYTHONPATH=%q PATH=%q\n' \
    "$cache/scale/venv/bin/python" "$checks" "$PATH"
