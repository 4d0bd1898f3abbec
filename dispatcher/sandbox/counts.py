"""What the sandbox has seen: requests by operation and result, requests open at once, jobs by result."""

from collections import Counter
from typing import Any

from dispatcher.sandbox.settings import Operation


class Counts:
    """Counted since the start or the last reset."""

    def __init__(self) -> None:
        self.open: Counter[Operation] = Counter()  # requests begun and not answered
        self.most: Counter[Operation] = Counter()  # the highest `open` has been
        self.connections = 0
        self.most_connections = 0
        self._requests: Counter[tuple[Operation, str]] = Counter()
        self._jobs: Counter[str] = Counter()
        self._accepted = 0

    def enter(self, operation: Operation) -> None:
        """A request begins."""
        now = self.open[operation] + 1
        self.open[operation] = now
        if now > self.most[operation]:
            self.most[operation] = now

    def leave(self, operation: Operation, result: str) -> None:
        """A request ends: answered (status and code), cut, hung up on."""
        self.open[operation] -= 1
        self._requests[operation, result] += 1

    def connected(self) -> None:
        """A connection was made."""
        self.connections += 1
        self.most_connections = max(self.most_connections, self.connections)

    def disconnected(self) -> None:
        """A connection was lost."""
        self.connections -= 1

    def accepted(self) -> None:
        """A job was taken."""
        self._accepted += 1

    def finished(self, result: str) -> None:
        """A job ended."""
        self._jobs[result] += 1

    def reset(self) -> None:
        """Counts from nought again; what is open stays so."""
        self._requests.clear()
        self._jobs.clear()
        self._accepted = 0
        self.most = Counter(self.open)
        self.most_connections = self.connections

    def report(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        requests: dict[str, dict[str, int]] = {}
        for (operation, result), number in sorted(self._requests.items()):
            requests.setdefault(operation, {})[result] = number
        return {
            "requests": requests,
            "open_requests": {operation: number for operation, number in self.open.items() if number},
            "max_open_requests": dict(self.most),
            "max_concurrent_invokes": self.most[Operation.INVOKE],
            "connections": self.connections,
            "max_connections": self.most_connections,
            "jobs": {"accepted": self._accepted, "finished": dict(self._jobs)},
        }
