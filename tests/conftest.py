"""What every test shares: how hypothesis runs."""

from __future__ import annotations

from hypothesis import settings

# A failure prints the seed and the example that reproduce it; nothing is kept between runs.
settings.register_profile("tidemill", database=None, deadline=None, print_blob=True)
settings.load_profile("tidemill")
