"""A quarter of an hour on a GPU, used well: `make gpu`."""
