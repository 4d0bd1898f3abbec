"""The credentials in force, at hand without waiting.

The SDK's own object refreshes within a request: whoever comes in the last ten minutes of its credentials waits, and fails
when the provider fails, though they are still good; and each who waits asks the provider again. Here one task at a time
refreshes while requests go on with what is valid; only when nothing valid is left a request waits for that task, and gets
its error.

The SDK's object stays the owner: what another client of the session has refreshed is seen within a second. When to refresh
is its rule too (`refresh_needed`: fifteen minutes before the end, as a rule).
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from dispatcher.aws.signing import Credentials

LOOK_SECONDS = 1.0
"""Between two looks at the SDK's object, and between two attempts to refresh where nothing valid is left."""
RETRY_SECONDS = 10.0
"""Between two attempts to refresh what is still valid."""
REFRESH_SECONDS = 60.0
"""A provider that hangs longer is taken for one that fails; then the next attempt is due."""


class CredentialKeeper:
    """Keeps the credentials of the SDK's object `source`.

    `_task` is the one refresh under way, `_failure` what the last one ended in; `_held` is valid or None, `_last` what was
    valid last. All are written on the event loop alone.
    """

    def __init__(self, source: Any, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._expires = hasattr(source, "refresh_needed")
        self._monotonic = monotonic
        self._look_at = self._asked_at = float("-inf")
        self._fetched: Any = None
        self._frozen: Any = None
        self._held: Credentials | None = None
        self._last: Credentials | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    def current(self) -> Credentials | None:
        """What is valid now; None where it has to be waited for. May start a refresh; does not wait for it."""
        now = self._monotonic()
        if now >= self._look_at:
            self._look(now)
        return self._held

    def latest(self) -> Credentials:
        """What is valid now, else what was last: for a request that is about to leave. RuntimeError where there never was any."""
        latest = self.current() or self._last
        if latest is None:
            raise RuntimeError("no credentials have been had yet")
        return latest

    async def renewed(self) -> Credentials:
        """What is valid, after the refresh under way where need be. Raises what the provider raised, which is asked once a second."""
        held = self.current()
        if held is None and self._task is not None:
            await asyncio.wait([self._task])  # whoever is cancelled here leaves the task to the others
            held = self.current()
        if held is None:
            raise self._failure or RuntimeError("the credentials have expired, and newer ones are not to be had")
        return held

    async def aclose(self) -> None:
        """Ends a refresh that is under way. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _look(self, now: float) -> None:
        frozen = self._valid()
        if frozen is not None and frozen is not self._frozen:
            self._frozen = frozen
            self._last = Credentials(frozen.access_key, frozen.secret_key, frozen.token)
        self._held = None if frozen is None else self._last
        # With nothing valid each request looks for itself, so that all go on as soon as there is something.
        self._look_at = float("-inf") if frozen is None else now + LOOK_SECONDS
        if frozen is None or (self._expires and self._source.refresh_needed()):
            self._refresh(now, LOOK_SECONDS if frozen is None else RETRY_SECONDS)

    def _valid(self) -> Any:
        """What the SDK's object holds, unless that has expired. Keys without an expiry are there after one fetch."""
        if not self._expires:
            return self._fetched
        # The one public way to them waits, and may raise though they are valid: hence the private name.
        frozen = getattr(self._source, "_frozen_credentials", self._fetched)
        return None if frozen is None or self._source.refresh_needed(0) else frozen

    def _refresh(self, now: float, after_seconds: float) -> None:
        """Starts a refresh, if none is under way and the last was started so long ago."""
        if self._task is None and now >= self._asked_at + after_seconds:
            self._asked_at = now
            self._task = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(REFRESH_SECONDS):
                self._fetched = await self._source.get_frozen_credentials()
            self._failure = None
        except Exception as error:  # the border: whatever a provider raises, told to whoever has nothing valid
            self._failure = error
        finally:
            self._task = None
