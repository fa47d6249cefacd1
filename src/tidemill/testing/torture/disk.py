"""A small disk for one file, so that it can be filled without harm: a tmpfs with a ballast file."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

ROOM: Final = 48 * 1024 * 1024
"""What there is room for beside the events: indexes, the write-ahead log, and what is no news to a file system."""

PER_EVENT: Final = 1536
"""Bytes of room for each event: three times what it takes."""


class SmallDisk:
    """A mounted tmpfs. `why_not` says why there is none: mounting needs root, at least in a namespace of its own."""

    def __init__(self, folder: Path, events: int) -> None:
        self.folder = folder
        size = ROOM + PER_EVENT * events
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            self.why_not = str(error)
        else:
            self.why_not = "" if done.returncode == 0 else done.stderr.strip().partition("\n")[0]

    def fill(self) -> None:
        """Leave no room."""
        if self.why_not:
            return
        block = bytes(1 << 20)
        with (self.folder / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                if ballast.write(block) < len(block):
                    break

    def free(self) -> None:
        """There is room again."""
        with suppress(FileNotFoundError):
            (self.folder / "ballast").unlink()

    def close(self) -> None:
        """Take the disk away, with all that is on it."""
        if not self.why_not:
            self.why_not = "it was taken away"
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
