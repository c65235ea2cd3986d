"""ABID's layout: photos, and a JSON file beside each."""
