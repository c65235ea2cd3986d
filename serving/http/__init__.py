"""Requests and answers: what comes over the wire, and within which limits."""
