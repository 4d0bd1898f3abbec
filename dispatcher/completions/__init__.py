"""Ways to learn that the service has finished."""
