"""A checkpoint and what it needs to count: model, decision, counter."""
