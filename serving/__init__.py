"""Stage 4: the model answers over HTTP."""
