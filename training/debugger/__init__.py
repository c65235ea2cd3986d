"""What watches a run, and the rules that say what is wrong with it."""
