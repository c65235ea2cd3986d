"""What a search decides, as pure functions of its seed and of results: what is tried, what goes on,
and what wins."""
