"""S3 as a place."""
