"""What the service must reach, measured on the real process: `python -m benchmarks.service`."""
