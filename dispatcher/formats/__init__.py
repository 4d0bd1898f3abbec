"""The bytes of job files and of result files: read, checked, and written. Synchronous; callers run it in a thread."""
