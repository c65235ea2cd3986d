"""Tables as people keep them, and the types of their columns."""
