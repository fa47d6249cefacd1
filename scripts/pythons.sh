#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
#
# Prints the path of each released Python from 3.11 on that is found on PATH or under ~/.pyenv, one a minor version:
# first the one that `python3` means, if it is new enough, then the others, oldest first.
#
# Every candidate is run: a name on PATH may be a shim for a version that is not there.

candidates() {
    command -v python3
    for minor in 11 12 13 14 15 16 17 18 19 20; do
        command -v "python3.$minor"
        for path in "$HOME"/.pyenv/versions/3."$minor".*/bin/python3; do
            [ -x "$path" ] && echo "$path"
        done
    done
    command -v python
}

seen=" "
candidates | while read -r candidate; do
    found=$("$candidate" -c 'if True:
        import os, sys
        if sys.version_info >= (3, 11) and sys.version_info.releaselevel == "final":
            # Behind a shim, and behind an environment, is the interpreter itself: the one that outlives both.
            print("%d.%d" % sys.version_info[:2], getattr(sys, "_base_executable", sys.executable))
        ' 2>/dev/null) || continue
    [ -n "$found" ] || continue
    minor=${found%% *}
    case $seen in *" $minor "*) continue ;; esac
    seen="$seen$minor "
    echo "${found#* }"
done
