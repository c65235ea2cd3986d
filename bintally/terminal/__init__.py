"""How programs talk to people: commands, progress, pages and plots."""
