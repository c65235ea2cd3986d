"""Stage 2: shards become a model that counts."""
