#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
#
# scripts/bootstrap.sh GROUP [VENV [PYTHON]]
#
# Makes VENV (.venv) hold exactly what requirements/GROUP.txt pins, and Tidemill itself, editable. Needs Python 3.11
# or newer; takes uv where there is one, else venv and pip. Says nothing when there is nothing to do.

set -eu
cd "$(dirname "$0")/.."

group=$1
venv=${2:-.venv}
base=${3:-${PYTHON:-}}
python=$venv/bin/python
lock=requirements/$group.txt
stamp=$venv/stamps/$group

# The directory is part of it: scripts in an environment carry its path, so one that was moved is of no use.
fingerprint=$({ pwd; cat "$lock" pyproject.toml scripts/bootstrap.sh; } | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ] && "$python" -c '' 2>/dev/null; then
    exit 0
fi

say() { printf '  · %s\n' "$*" >&2; }
fail() { printf '\n%s\n' "$*" >&2; exit 1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT

quietly() {
    "$@" >"$log" 2>&1 && return
    tail -n 25 "$log" >&2
    fail "That failed: $*
Nothing outside $venv was changed. If a download failed, check the network and the package index in use, then run make again."
}

if ! "$python" -c '' 2>/dev/null || [ "$(cat "$venv/stamps/home" 2>/dev/null)" != "$PWD" ]; then
    if [ -z "$base" ]; then
        base=$(scripts/pythons.sh | head -n 1)
        [ -n "$base" ] || fail "Tidemill needs Python 3.11 or newer, and none was found on PATH or under ~/.pyenv.
Install one, or name it: make PYTHON=/path/to/python3.11 …"
    fi
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "Tidemill needs Python 3.11 or newer, and $base is not one, or does not run."

    say "making $venv with $("$base" --version)"
    rm -rf "$venv"
    if command -v uv >/dev/null; then
        quietly uv venv --quiet --python "$base" "$venv"
    elif "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        quietly "$base" -m venv "$venv"
    else
        fail "$base comes without venv and pip. On Debian and Ubuntu: apt-get install python3-venv. Or install uv."
    fi
    mkdir -p "$venv/stamps"
    pwd >"$venv/stamps/home"
fi

if command -v uv >/dev/null; then
    installer=uv
    install() { quietly uv pip install --quiet --python "$python" "$@"; }
else
    installer=pip
    "$python" -m pip --version >/dev/null 2>&1 || quietly "$python" -m ensurepip  # uv had made this environment
    install() { quietly "$python" -m pip install --quiet --disable-pip-version-check "$@"; }
fi

# Wheels only: what a source distribution asks for while it is built is pinned by nobody.
say "installing $lock with $installer"
install --require-hashes --only-binary :all: -r "$lock"

say "installing tidemill, editable"
install --no-deps --no-build-isolation -e .

printf '%s\n' "$fingerprint" >"$stamp"
