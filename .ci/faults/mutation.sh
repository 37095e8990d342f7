#!/usr/bin/env bash
# Mutation: changes the pure half of the module (errors, events, log, requests: up to the
# double line) in every small way that cosmic-ray knows, and runs the unit tests of that
# half on each.  Prints the mutants that no test noticed, with their place and change.
#
# usage: mutation.sh [SHARE]     one of SHARE mutants, evenly spread (default 1: all of
#                                them, which takes about half an hour on two cores)
# The exit status is 1 where more than 5 in 100 survive: what is left below was looked at
# and changes nothing that can be observed.
set -euo pipefail

share=${1:-1}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${SSE_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sse_server-ci}
venv=$cache/mutation
tests="FormatEventTest NamesTest FramingTest HTTPErrorTest EventLogTest
    EventLogModelTest InterruptedLogTest RequestTest ParsingWorkTest FuzzTest AnswerTest UnderLoadTest"
workers=2

if ! "$venv/bin/cosmic-ray" --version >/dev/null 2>&1; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install -qq cosmic-ray
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
last=$(grep -n '^#    Above this line: bytes and values' "$root/sse_server.py" | cut -d: -f1)
first=$(grep -n '^# 2\. Errors' "$root/sse_server.py" | cut -d: -f1)
[[ $first && $last ]] || { echo "FAIL mutation: the line between the halves is not found"; exit 1; }

# prepare N: a copy of the project with the Nth part of the mutants to try.
prepare() {
    local copy=$folder/$1 names
    mkdir "$copy"
    cp "$root/sse_server.py" "$root/test_sse_server.py" "$copy"
    names=$(printf 'test_sse_server.%s ' $tests)
    cat >"$copy/config.toml" <<END
[cosmic-ray]
module-path = "sse_server.py"
timeout = 30.0
excluded-modules = []
test-command = "$venv/bin/python -m unittest -q -f $names"
distributor.name = "local"
END
    (cd "$copy" && "$venv/bin/cosmic-ray" init config.toml session.sqlite)
    "$venv/bin/python" - "$copy/session.sqlite" "$first" "$last" "$share" "$1" "$workers" <<'END'
import re
import sqlite3
import sys

path, first, last, share, part, workers = sys.argv[1], *map(int, sys.argv[2:])
with sqlite3.connect(path) as session:
    rows = session.execute(
        "select job_id, start_pos_row, operator_name from mutation_specs "
        "order by start_pos_row, start_pos_col, operator_name, occurrence"
    ).fetchall()
    # No mutants: annotations are text to Python, so `X | None` can be anything; and the
    # identity of small integers and short strings is their equality, by chance.
    harmless = re.compile(r".*BitOr|.*Comparison.*(?<!_Is)(?<!_IsNot)_(Is|IsNot)$")
    pure = [
        job
        for job, row, operator in rows
        if first < row < last and not harmless.match(operator)
    ]
    chosen = set(pure[::share][part::workers])
    for job, _, _ in rows:
        if job not in chosen:
            for table in ("mutation_specs", "work_items"):
                session.execute(f"delete from {table} where job_id = ?", (job,))
    print(f"part {part}: {len(chosen)} of {len(pure)} mutants", flush=True)
END
}

for ((n = 0; n < workers; n++)); do prepare "$n"; done
for ((n = 0; n < workers; n++)); do
    (cd "$folder/$n" && "$venv/bin/cosmic-ray" exec config.toml session.sqlite) &
done
wait

"$venv/bin/python" - "$folder" "$workers" <<'END'
import sqlite3
import sys

folder, workers = sys.argv[1], int(sys.argv[2])
tried = survived = 0
for part in range(workers):
    with sqlite3.connect(f"{folder}/{part}/session.sqlite") as session:
        tried += session.execute("select count(*) from work_results").fetchone()[0]
        for row, operator, diff in session.execute(
            "select start_pos_row, operator_name, diff from work_results "
            "join mutation_specs using (job_id) where test_outcome like '%SURVIVED%' "
            "order by start_pos_row"
        ):
            survived += 1
            print(f"\nsurvived: {operator} at line {row}")
            for line in diff.splitlines():
                if line[:1] in "+-" and line[:3] not in ("---", "+++"):
                    print(line)
print(f"\nmutation: {survived} of {tried} mutants survived")
sys.exit(not tried or survived > tried * 0.05)
END
