"""What holds for every test."""

import asyncio


def pytest_configure() -> None:
    # looptime 0.9 asks for the event loop also around tests that have none, and asyncio would make one that nobody
    # closes. Said once, "there is none" stays said.
    asyncio.set_event_loop(None)
