"""Training beside the model alone."""
