"""What a dataset says of itself to others: a card for people and Hugging Face, and Croissant."""
