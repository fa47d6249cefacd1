"""G1, G6, G7 with real processes."""
