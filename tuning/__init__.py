"""Stage 3: many trainings, one winner."""
