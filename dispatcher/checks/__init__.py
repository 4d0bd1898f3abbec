"""What `dispatcher check` looks at before anything depends on it: settings, disk, SDK, account, endpoints, buckets."""
