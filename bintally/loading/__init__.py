"""Samples become batches: an order, engines that decode, and the loader."""
