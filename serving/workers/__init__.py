"""The processes that count, and what looks after them."""
