#!/bin/sh
# Every check that CI runs, the quick ones first; stops at the first stage that fails. `make test` calls it.
# With NEWEST=1 it goes on, and fails in the end: a newer ruff that finds something must not hide what the tests say.
#   tools/check.sh        leaves out tests marked slow and gpu
#   tools/check.sh all    runs these as well (gpu tests skip themselves where there is no CUDA device)
set -eu
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
# Two torch threads on a busy machine with two cores can be ten times slower than one.
export PATH OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

failed=0
stage() {
    name=$1
    shift
    start=$(date +%s)
    printf -- '--- %s\n' "$name"
    if "$@"; then
        printf -- '--- %s: passed, %d s\n' "$name" $(($(date +%s) - start))
    else
        status=$?
        printf -- '--- %s: FAILED after %d s\n' "$name" $(($(date +%s) - start))
        [ -n "${NEWEST:-}" ] || exit "$status"
        failed=$status
    fi
}

selection="not slow and not gpu"
[ "${1:-}" != all ] || selection=""

stage "ruff check" ruff check --quiet --output-format=concise
stage "ruff format" ruff format --check --quiet
stage "mypy" mypy --no-error-summary
# Two processes, a file each: the suite then needs about half the time on the two cores that CI has.
stage "tests" python -m pytest -n 2 --dist loadfile --no-header -rfEs -m "$selection" tests
stage "notebooks in profile ci" python tools/notebooks.py test
exit "$failed"
