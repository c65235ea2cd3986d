"""Sharding beside its peers."""
