"""`python -m tidemill.testing.conformance` prints the suite as a Markdown table."""

import sys

from . import table

sys.stdout.write(table())
