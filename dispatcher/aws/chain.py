"""The SDK's chain of credential providers, asked so that it can be given up: it says whom it asks, and leaves no process behind.

To cancel what a provider awaits ends all but one thing: the process of a `credential_process`, which the event loop keeps. It
is killed here, with all that it has started, unless there is a terminal at which it may ask a person: there it stays in the
terminal's own group, and is killed alone.
"""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Callable
from typing import Any

from aiobotocore.credentials import AioAssumeRoleProvider, AioProcessProvider

END_SECONDS = 1.0
"""How long a killed process is waited for; only its own children, which may hold its pipes, can make that long."""


async def load(resolver: Any, asking: Callable[[str], None]) -> Any:
    """Asks the chain from its beginning, as the resolver itself does; None where nobody has credentials.

    `asking` is told of each provider, in the SDK's words, before it is asked.
    """
    for provider in resolver.providers:
        _bound(provider)
        asking(str(provider.METHOD))
        found = await provider.load()
        if found is not None:
            return found
    return None


def _bound(provider: Any) -> None:
    """Whatever process the provider starts, itself or for a profile that it borrows from, ends with whoever waits for it."""
    if isinstance(provider, AioProcessProvider):
        provider._popen = _popen
    builder = getattr(provider, "_profile_provider_builder", None)
    if isinstance(provider, AioAssumeRoleProvider) and builder is not None:
        create = builder._create_process_provider

        def created(profile_name: str) -> Any:
            made = create(profile_name)
            _bound(made)
            return made

        builder._create_process_provider = created


class _Child:
    """A process, as far as the SDK uses one."""

    def __init__(self, process: Process, alone: bool) -> None:
        self._process = process
        self._alone = alone

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        try:
            return await self._process.communicate()
        except asyncio.CancelledError:
            await self._end()
            raise

    async def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._alone:
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        # Else the pipes stay open as long as anybody holds their other ends.
        self._process._transport.close()  # type: ignore[attr-defined]


async def _popen(*command: str, **pipes: Any) -> _Child:
    alone = os.isatty(0)
    process = await asyncio.create_subprocess_exec(*command, start_new_session=not alone, **pipes)
    return _Child(process, alone)
