"""What a run is lost by, and how it goes on: checkpoints, resumption, interruption."""
