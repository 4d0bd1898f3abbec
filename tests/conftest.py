"""What holds for every test."""

import asyncio

from hypothesis import HealthCheck, settings

# A shared machine may stand still for seconds: how long an example takes says nothing of the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_configure() -> None:
    # looptime 0.9 asks for the event loop also around tests that have none, and asyncio would make one that nobody
    # closes. Said once, "there is none" stays said.
    asyncio.set_event_loop(None)
