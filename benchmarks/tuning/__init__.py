"""A search beside the plain way."""
