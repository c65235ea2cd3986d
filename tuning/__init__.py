"""Stage 3: many trainings, one winner. Nothing is here yet."""
