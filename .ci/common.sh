# What the scripts of the checks share; to be sourced.

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

# install_packages LIST VENV: Python's, into VENV, unless it was filled from this LIST.
install_packages() {
    cmp -s "$1" "$2/installed-from" && return
    rm -rf "$2"
    mkdir -p "$(dirname "$2")"
    python3 -m venv "$2" >&2
    "$2/bin/pip" install -qq --disable-pip-version-check -r "$1" >&2
    cp "$1" "$2/installed-from"
}

summary=()
status=0

# part NAME COMMAND...: runs it, and keeps how it ended.
part() {
    local output ended=ok start=$SECONDS
    output=$(mktemp)
    "${@:2}" 2>&1 | tee "$output" || { status=1; ended=FAILED; }
    summary+=("$ended $1 ($((SECONDS - start)) s)   $(grep "^$1: .*passed" "$output")")
    rm -f "$output"
}
