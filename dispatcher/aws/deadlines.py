"""How long a call may take: the one bound that holds for all of it.

The SDK's read timeout bounds neither a missing `100 Continue`, nor a peer that stops reading in mid-upload, nor an answer
that drips, nor a resolver or a credential provider that hangs. So every call has one time of its own; where its steps are
awaited one by one, each takes from what those before it left (`spend`).
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from msgspec import Struct

T = TypeVar("T")


class Deadline(Struct, frozen=True, kw_only=True):
    """`base_seconds` for a call without a payload, and time for its bytes at `bytes_per_second`."""

    base_seconds: float = 10.0
    bytes_per_second: float = 1_000_000.0

    def seconds(self, size_bytes: int = 0) -> float:
        return self.base_seconds + size_bytes / self.bytes_per_second


DEFAULT_DEADLINE = Deadline()


async def spend(seconds: float, step: Awaitable[T]) -> tuple[T, float]:
    """What a step gives within `seconds`, and how many of them it left. TimeoutError if it takes longer."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(seconds):
        given = await step
    return given, seconds - (loop.time() - began)
