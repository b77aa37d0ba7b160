#!/bin/sh
# Makes .venv and installs everything the course needs into it. `make` calls this whenever pins have changed;
# calling it again costs seconds. With the argument `crf` it only (re)tries the optional pydensecrf.
#
#   PYTHON=python3.12   which Python to use (default: the first of python3, python3.13, ... that is new enough)
#   NEWEST=1            the newest version of every package instead of the pinned ones
#   MIN_FREE_GB=8       how much free disk to ask for before a first installation
set -eu

VENV=.venv
PY=$VENV/bin/python
LIMITS="-c constraints.txt"
[ -z "${NEWEST:-}" ] || LIMITS=--upgrade
CRF_LOG=$VENV/pydensecrf-build.log

say() { printf '%s\n' "$*" >&2; }
stop() {
    printf '\nSet-up stopped: %s\n' "$1" >&2
    shift
    for line in "$@"; do say "  $line"; done
    exit 1
}

new_enough() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    found=$("${PYTHON:-python3}" --version 2>&1) || found="no ${PYTHON:-python3}"
    stop "Python 3.11 or newer is needed, and there is only: $found" \
        "Install a newer one (Debian/Ubuntu: sudo apt install python3.11 python3.11-venv; macOS: brew install python@3.12)" \
        "and run the same command again, or name it: make PYTHON=/path/to/python3.12 lab"
}

check_disk() {
    needed=${MIN_FREE_GB:-8}
    free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1000000))
    [ "$free" -ge "$needed" ] || stop "$free GB are free here; PyTorch and its libraries need about $needed GB." \
        "Free some, or move this folder to a bigger disk. To try all the same: make MIN_FREE_GB=$free lab"
}

make_venv() {
    python=$(find_python)
    check_disk
    say "Making $VENV with $("$python" --version)"
    "$python" -m venv "$VENV" >&2 && return
    rm -rf "$VENV"
    stop "Python could not make a virtual environment in $VENV (its own words are above)." \
        "Debian and Ubuntu keep the module apart: sudo apt install python3-venv, then run the same command again"
}

install_all() {
    say "Installing the course into $VENV (the first time this fetches some GB and takes minutes)"
    "$PY" -m uv --version >/dev/null 2>&1 || "$PY" -m pip install --quiet --disable-pip-version-check uv >&2 ||
        stop "pip could not install uv, which fetches the other packages (its own words are above)." \
            "Is this machine online? Behind a proxy, set HTTPS_PROXY. Then run the same command again"
    # Compiled once: else each of the many processes that tests and kernels are compiles torch for itself where Python
    # may write no bytecode, as in many containers (PYTHONDONTWRITEBYTECODE), two seconds every time.
    # shellcheck disable=SC2086  # two words
    "$PY" -m uv pip install --quiet --compile-bytecode --python "$PY" $LIMITS -e ".[dev]" >&2 ||
        stop "not every package could be installed (uv's own words are above)." \
            "Network: run the same command again, what has been fetched is kept. Disk: free some ('df -h .')." \
            "'No solution' or 'no wheel': this Python or machine has no such package; try make PYTHON=python3.12 lab" \
            "after deleting $VENV, or environment.yml with conda"
}

# pydensecrf2 1.1 pins a Cython whose C does not compile on Python 3.13; there a newer Cython translates it.
build_crf() {
    if "$PY" -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
        "$PY" -m uv pip install --python "$PY" "cython>=3" setuptools wheel
        export CYTHON_FORCE_REGEN=1
        set -- --no-build-isolation
    fi
    # shellcheck disable=SC2086
    "$PY" -m uv pip install --python "$PY" $LIMITS "$@" pydensecrf2
}

# Never stops the rest: the course has its own dense CRF and only compares it with this one.
install_crf() {
    "$PY" -c 'import pydensecrf.densecrf' 2>/dev/null && return
    if ! command -v "${CXX:-c++}" >/dev/null 2>&1 && ! command -v g++ >/dev/null 2>&1; then
        reason="there is no C++ compiler (Debian/Ubuntu: sudo apt install g++; macOS: xcode-select --install)"
    elif build_crf >"$CRF_LOG" 2>&1; then
        return
    else
        reason="it could not be built, see $CRF_LOG (often python3-dev is missing)"
    fi
    say "Note: pydensecrf, the optional reference for our dense CRF, was left out: $reason." \
        "Everything else works. To add it later: make crf"
}

cd "$(dirname "$0")/.."
if [ ! -e "$VENV" ]; then
    make_venv
elif ! new_enough "$PY"; then
    stop "$VENV holds no Python 3.11 or newer." "Delete the folder $VENV and run the same command again"
fi
[ "${1:-all}" = crf ] || install_all
install_crf
