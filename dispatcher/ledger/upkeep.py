"""When the ledger's thread does what nobody asked for. Pure: it is told the time (monotonic seconds).

Two things are due by themselves: moving the log into the file when nothing has changed for a while, and, on a full disk, trying
whether there is space again. `full` is the degraded mode: set when the ballast was let go, cleared when it lies there again.
While it lasts the log stays: moving it may make the file grow, into the space that the records need.
"""

from msgspec import Struct


class Pace(Struct, frozen=True):
    """How long a group gathers, how long without a change until the log is moved into the file, and how long between looks
    for space on a full disk.
    """

    gather_seconds: float = 0.002
    idle_seconds: float = 5.0
    retry_seconds: float = 5.0


class Upkeep:
    """The two alarms; None where nothing is due at any time."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._checkpoint_at: float | None = None
        self._look_at: float | None = None

    @property
    def gather_seconds(self) -> float:
        """How long the first call of a group waits for others."""
        return self._pace.gather_seconds

    @property
    def full(self) -> bool:
        """Whether the disk is full, as far as is known."""
        return self._look_at is not None

    def changed(self, now: float) -> None:
        """The log has grown."""
        self._checkpoint_at = now + self._pace.idle_seconds

    def checkpointed(self) -> None:
        """The log was moved into the file, or could not be: the next change asks again."""
        self._checkpoint_at = None

    def filled(self, now: float) -> None:
        """The disk is full, still or newly."""
        self._look_at = now + self._pace.retry_seconds

    def emptied(self) -> None:
        """There is space again."""
        self._look_at = None

    def wants_checkpoint(self, now: float) -> bool:
        """Whether nothing has changed for long enough."""
        return not self.full and self._checkpoint_at is not None and now >= self._checkpoint_at

    def wants_look(self, now: float) -> bool:
        """Whether it is time to look for space."""
        return self._look_at is not None and now >= self._look_at

    def patience(self, now: float) -> float | None:
        """Seconds until something is due; None where nothing is."""
        due_at = self._look_at if self.full else self._checkpoint_at
        return None if due_at is None else max(0.0, due_at - now)
