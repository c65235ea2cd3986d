"""The dataset on disk: its format, and what reads it."""
