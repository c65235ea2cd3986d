"""An invented bucket in ABID's layout, for the demo, tests and benchmarks."""
