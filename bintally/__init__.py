"""What the stages share and which belongs to none of them: commands and places."""

__version__ = "0.1.0"
