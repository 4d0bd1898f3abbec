"""The command line: reads flags, runs a command, ends with its exit status. Nothing is decided here but how things look."""

from dispatcher.cli.main import main

__all__ = ["main"]
