"""`python -m tidemill.testing.conformance` prints the suite as a Markdown table."""

from . import table

print(table(), end="")
