"""The durable record of job files and jobs: on SQLite (`sqlite`) and, for tests and virtual time, in memory (`memory`)."""
