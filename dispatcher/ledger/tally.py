"""The event loop's side of a ledger: its queues, how many jobs of each are in each state, and who wants to know.

Changed only by `apply`, on the event loop, after a change is durable. First the sums, then the observers, then (by the
caller of `apply`) the callers that wait: who is told of a change can see it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from dispatcher.model import Change, Queue, QueueId, State

Moved = tuple[QueueId, State | None, State]
"""A queue, and the states that jobs of it went from (None: they are new) and to."""

Observer = Callable[[Sequence[Change]], None]


class Tally:
    """The sums of all queues."""

    def __init__(self, queues: Iterable[Queue] = (), counts: Mapping[tuple[QueueId, State], int] | None = None) -> None:
        self._queues = {queue.queue_id: queue for queue in queues}
        self._counts = {queue: dict.fromkeys(State, 0) for queue in self._queues}
        for (queue, state), jobs in (counts or {}).items():
            self._counts[queue][state] = jobs
        self._observers: list[Observer] = []

    def queues(self) -> list[Queue]:
        """All queues, in the order they were made."""
        return list(self._queues.values())

    def of(self, queue: QueueId) -> dict[State, int]:
        """The sums of one queue, all states present; the caller's own."""
        return dict(self._counts[queue])

    def holding(self, state: State) -> list[QueueId]:
        """The queues that have jobs in this state."""
        return [queue for queue, counts in self._counts.items() if counts[state]]

    def subscribe(self, observer: Observer) -> None:
        """Calls `observer` at every `apply` that brings changes."""
        self._observers.append(observer)

    def apply(self, made: Iterable[Queue], moved: Mapping[Moved, int]) -> None:
        """Takes in new queues and what became of how many jobs, then tells the observers."""
        for queue in made:
            self._queues[queue.queue_id] = queue
            self._counts[queue.queue_id] = dict.fromkeys(State, 0)
        changes = [self._change(*pair, jobs) for pair, jobs in moved.items() if jobs]
        if changes:
            for observer in self._observers:
                observer(changes)

    def _change(self, queue: QueueId, prior: State | None, state: State, jobs: int) -> Change:
        counts = self._counts[queue]
        if prior is not None:
            counts[prior] -= jobs
        counts[state] += jobs
        return Change(self._queues[queue], prior, state, jobs)
