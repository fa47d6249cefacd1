# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""Where databases lie while they are measured: on a disk, as a commit costs nothing in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PERSISTENT = Path("/var/tmp")
"""Unlike /tmp it is kept on disk wherever it exists."""


def use(folder: Path) -> None:
    """Put databases below `folder` from now on."""
    tempfile.tempdir = str(folder)


@contextmanager
def folder() -> Iterator[Path]:
    base = tempfile.tempdir or (PERSISTENT if PERSISTENT.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=base) as name:
        yield Path(name)
