"""Data sets of token rows that cannot be read in place: what they hold, and their conversion."""
