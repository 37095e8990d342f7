# What the scripts of the checks share; to be sourced.
export PYTHONDONTWRITEBYTECODE=1
PATH=$PATH:/usr/sbin:/sbin # where Debian puts servers and ip
checks=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) # with common.py
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

# prepare STAGE: installs what it needs, once, and exports where that is.
prepare() {
    local programs=(curl:curl) folder=$cache/$1
    case $1 in
        interop) programs+=(chromium:chromium firefox-esr:firefox-esr nginx:nginx-light
            haproxy:haproxy caddy:caddy node:nodejs npm:npm) ;;
        faults) programs+=(ip:iproute2 slowhttptest:slowhttptest openssl:openssl
            unshare:util-linux) ;;
        scale) programs+=(redis-server:redis-server nginx:nginx-light caddy:caddy
            ip:iproute2 unshare:util-linux openssl:openssl systemd-analyze:systemd
            pg_lsclusters:postgresql) ;;
    esac
    install_programs "${programs[@]}" &&
        { install_packages "$checks/$1/requirements.txt" "$folder/venv" ||
            [[ $1 == faults ]]; } && # a fuzzer, for which this Python may be too new
        { [[ $1 != interop ]] ||
            install_packages "$checks/interop/package.json" "$folder/node"; } ||
        { echo "FAIL $1: nothing installed" && return 1; }
    python=$folder/venv/bin/python
    export PYTHONPATH=$checks NODE_PATH=$folder/node/node_modules
    export INTEROP_PYTHON=$python FUZZ_PYTHON=$python
}

summary=()
status=0
pending=()

# part NAME COMMAND...: runs it, and keeps how it ended.  What runs real programs against
# deadlines may fail once on a busy machine: then it is run again, and both are shown.
part() { attempts 2 "$@"; }

# whole NAME COMMAND...: the same for what consists of parts, or depends on no deadline.
whole() { attempts 1 "$@"; }

attempts() {
    local name=$2 number ended=FAILED start=$SECONDS output
    output=$(mktemp)
    for ((number = 1; number <= $1; number++)); do
        printf '== %s%s\n' "$name" "$( ((number == 1)) || echo ", once more")"
        "${@:3}" 2>&1 | tee "$output" || continue
        ended=$( ((number == 1)) && echo ok || echo again)
        break
    done
    [[ $ended != FAILED ]] || status=1
    local told
    told=$(grep -a "^$name: .*" "$output" | tail -n 1)
    summary+=("$ended $name ($((SECONDS - start)) s)${told:+   $told}")
    rm -f "$output"
}

# beside part|whole NAME COMMAND...: while what follows runs; `joined` waits for all that
# run beside, and shows what each said, as a whole.
beside() {
    local folder
    folder=$(mktemp -d)
    (
        trap - INT QUIT # ignored behind `&`, and by all that is started from here
        summary=()
        status=0
        "$@"
        printf '%s\n' "${summary[@]}" >"$folder/summary"
        exit $status
    ) >"$folder/output" 2>&1 &
    pending+=("$!:$folder")
}

joined() {
    local entry folder
    for entry in "${pending[@]}"; do
        folder=${entry#*:}
        wait "${entry%%:*}" || status=1
        cat "$folder/output"
        summary+=("$(<"$folder/summary")")
        rm -r "$folder"
    done
    pending=()
}

# conclude NAME: the summary of the parts, and the exit status.
conclude() {
    echo
    printf '%s\n' "${summary[@]}"
    if ((status)); then echo "FAIL $1"; else echo "PASS $1"; fi
    exit $status
}
