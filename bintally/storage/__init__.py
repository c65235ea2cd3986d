"""Where bytes lie: places (a folder, an S3 prefix), leases on them, and what is kept on disk."""
