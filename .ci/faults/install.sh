#!/usr/bin/env bash
# Installs what the server is attacked with, once: programs from Debian, and a fuzzer that
# is guided by coverage where it has a wheel for this Python.  Prints assignments for
# `eval`: FUZZ_PYTHON, PYTHONPATH and PATH.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

install_programs ip:iproute2 slowhttptest:slowhttptest openssl:openssl unshare:util-linux
install_packages "$here/requirements.txt" "$cache/faults" ||
    echo "no fuzzer that is guided by coverage has a wheel for this Python" >&2
printf 'export FUZZ_PYTHON=%q PYTHONPATH=%q PATH=%q\n' \
    "$cache/faults/bin/python" "$checks" "$PATH"
