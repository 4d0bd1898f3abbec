"""How long a call may take: the one bound that holds for all of it.

The SDK's read timeout bounds neither a missing `100 Continue`, nor a peer that stops reading in mid-upload, nor an answer
that drips, nor a resolver or a credential provider that hangs. So every call runs under `asyncio.timeout` of its own.
"""

from msgspec import Struct


class Deadline(Struct, frozen=True, kw_only=True):
    """`base_seconds` for a call without a payload, and time for its bytes at `bytes_per_second`."""

    base_seconds: float = 10.0
    bytes_per_second: float = 1_000_000.0

    def seconds(self, size_bytes: int = 0) -> float:
        return self.base_seconds + size_bytes / self.bytes_per_second


DEFAULT_DEADLINE = Deadline()
