# What the scripts of the checks share; to be sourced.
export PYTHONDONTWRITEBYTECODE=1
PATH=$PATH:/usr/sbin:/sbin # where Debian puts servers and ip
here=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
cache=${SSE_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sse_server-ci}

# install_programs PROGRAM:PACKAGE...: from Debian, those that are not there.
install_programs() {
    local missing=() entry sudo=()
    for entry; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
    done
    ((${#missing[@]})) || return 0
    [[ $(id -u) == 0 ]] || sudo=(sudo)
    "${sudo[@]}" apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" \
        apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

# install_packages LIST FOLDER: Python's into a venv, or Node's if it is a package.json,
# unless the folder was filled from this LIST.
install_packages() {
    cmp -s "$1" "$2/installed-from" && return
    rm -rf "$2"
    mkdir -p "$2"
    if [[ $1 == *.json ]]; then
        cp "$1" "$2"
        npm install --prefix "$2" --ignore-scripts --no-audit --no-fund --silent >&2
    else
        python3 -m venv "$2" >&2
        "$2/bin/pip" install -qq --disable-pip-version-check -r "$1" >&2
    fi
    cp "$1" "$2/installed-from"
}

summary=()
status=0

# part NAME COMMAND...: runs it, and keeps how it ended.  What runs real programs against
# deadlines may fail once on a busy machine: then it is run again, and both are shown.
part() {
    local output ended start=$SECONDS
    output=$(mktemp)
    for ended in ok again FAILED; do
        [[ $ended == FAILED ]] && { status=1; break; }
        echo "== $1${ended#ok}" | sed "s/again/, once more/"
        "${@:2}" 2>&1 | tee "$output" && break
    done
    summary+=("$ended $1 ($((SECONDS - start)) s)   $(grep "^$1: .*" "$output" | tail -n 1)")
    rm -f "$output"
}

# conclude NAME: the summary of the parts, and the exit status.
conclude() {
    echo
    printf '%s\n' "${summary[@]}"
    if ((status)); then echo "FAIL $1"; else echo "PASS $1"; fi
    exit $status
}
