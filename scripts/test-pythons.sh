#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
#
# scripts/test-pythons.sh [PYTEST OPTION…]
#
# Runs the tests, without the slow ones, on every Python found besides the one in .venv, each in its own environment.

set -eu
cd "$(dirname "$0")/.."

minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

usual=$(minor .venv/bin/python)
failed=
tried=
for python in $(scripts/pythons.sh); do
    version=$(minor "$python")
    [ "$version" != "$usual" ] || continue
    tried="$tried $version"
    printf '\nPython %s\n' "$version" >&2
    if ! { scripts/bootstrap.sh test ".venv-$version" "$python" &&
        ".venv-$version/bin/python" -m pytest -q -m "not slow" "$@"; }; then
        failed="$failed $version"
    fi
done

[ -n "$tried" ] || echo "No Python besides $usual was found: nothing more to test." >&2
[ -z "$failed" ] || { printf '\nFailed on Python%s\n' "$failed" >&2; exit 1; }
