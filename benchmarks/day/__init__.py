"""A day in the life of the service, in minutes: files dropped at random, troubles of every kind, then a recount of everything."""
