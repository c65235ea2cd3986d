"""What is in a bucket: its objects, and what their metadata say."""
