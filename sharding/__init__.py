"""Stage 1: a bucket of bin photos becomes WebDataset shards."""
