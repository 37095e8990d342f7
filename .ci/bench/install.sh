#!/usr/bin/env bash
# Installs a C compiler; with --peers also the other servers, and prints the Python that
# has those that are written in it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

install_programs cc:build-essential
[[ ${1-} == --peers ]] || exit 0
install_programs nginx:nginx-light node:nodejs
[[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ]] || install_programs :libnginx-mod-nchan
install_packages "$here/drivers/requirements.txt" "$cache/bench"
echo "$cache/bench/bin/python"
