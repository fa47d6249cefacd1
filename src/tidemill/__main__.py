"""`python -m tidemill`: the command line, without the script."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
