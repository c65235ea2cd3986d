"""What is done with a checkpoint: measuring it, counting with it, exporting it."""
