"""The application as data, and as diagrams drawn from data."""
