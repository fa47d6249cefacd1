#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
#
# scripts/lock.sh [OPTION…]      --upgrade takes the newest of everything, --upgrade-package NAME of one
#
# Writes requirements/*.txt: what Tidemill and a dependency group need, for every Python and platform, with hashes.

set -eu
cd "$(dirname "$0")/.."

if ! command -v uv >/dev/null; then
    echo "  · installing uv into .venv-lock" >&2
    "$(scripts/pythons.sh | head -n 1)" -m venv .venv-lock
    .venv-lock/bin/pip install --quiet --disable-pip-version-check uv
    PATH=$PWD/.venv-lock/bin:$PATH
fi

lock() {
    group=$1; shift
    echo "  · requirements/$group.txt" >&2
    uv pip compile pyproject.toml --quiet --group "$group" "$@" --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --annotation-style line --custom-compile-command "make lock" \
        --output-file "requirements/$group.txt"
}

# The widest first. The others keep to it, so that one environment can serve them all.
lock check --extra all "$@"
for group in demo test bench; do
    case $group in test) extras="--extra all" ;; *) extras= ;; esac
    # shellcheck disable=SC2086  # no extras are no argument
    lock "$group" $extras --constraint requirements/check.txt "$@"
done
