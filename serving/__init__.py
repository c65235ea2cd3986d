"""The model answers over HTTP. Nothing is here yet."""
