"""The event loop's side of a ledger: its queues, how many jobs of each are in each state, what ever came in, and who wants to know.

Changed only by `apply`, on the event loop, after a change is durable. First the sums, then the observers, then (by the
caller of `apply`) the callers that wait: who is told of a change can see it. What was forgotten goes last, so that a
queue is still known to those who hear of its last change.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from dispatcher.model import Change, EndpointName, FileId, Queue, QueueId, State

Moved = tuple[QueueId, State | None, State]
"""A queue, and the states that jobs of it went from (None: they are new) and to."""

Observer = Callable[[Sequence[Change]], None]
Totals = dict[tuple[EndpointName, State], int]


class Sums(Struct, frozen=True):
    """All that a tally starts with: what the ledger held when it was opened."""

    queues: list[Queue] = []
    counts: dict[tuple[QueueId, State], int] = {}
    totals: Totals = {}
    accepted: int = 0
    rejected: int = 0


class Effects(Struct, frozen=True, kw_only=True):
    """What one durable change did. `pruned` is how many jobs in a state were forgotten, `gone` the queues that were."""

    made: list[Queue] = []
    moved: dict[Moved, int] = {}
    rejected: int = 0
    pruned: dict[tuple[QueueId, State], int] = {}
    gone: list[Queue] = []


class Tally:
    """The sums of all queues."""

    def __init__(self, sums: Sums | None = None) -> None:
        sums = sums or Sums()
        self._queues: dict[QueueId, Queue] = {}
        # The same by file: there may be ten thousands of files, each with its queues.
        self._by_file: dict[FileId, dict[QueueId, Queue]] = {}
        self._counts: dict[QueueId, dict[State, int]] = {}
        for queue in sums.queues:
            self._add(queue)
        for (holder, state), jobs in sums.counts.items():
            self._counts[holder][state] = jobs
        self._totals = dict(sums.totals)
        self._accepted, self._rejected = sums.accepted, sums.rejected
        self._observers: list[Observer] = []

    def queues(self, file: FileId | None = None) -> list[Queue]:
        """All queues, or a file's, in the order they were made."""
        return list((self._queues if file is None else self._by_file.get(file, {})).values())

    def queue(self, id: QueueId) -> Queue:
        """The queue of this id."""
        return self._queues[id]

    def of(self, queue: QueueId) -> dict[State, int]:
        """The sums of one queue, all states present; the caller's own."""
        return dict(self._counts[queue])

    def holding(self, state: State, file: FileId | None = None) -> list[QueueId]:
        """The queues, of all files or of one, that have jobs in this state."""
        among = self._queues if file is None else self._by_file.get(file, {})
        return [queue for queue in among if self._counts[queue][state]]

    def totals(self) -> Totals:
        """How many jobs ever came into each state, where any did; the caller's own."""
        return dict(self._totals)

    def lines(self) -> tuple[int, int]:
        """How many lines were ever accepted and rejected."""
        return self._accepted, self._rejected

    def subscribe(self, observer: Observer) -> None:
        """Calls `observer` at every `apply` that brings changes."""
        self._observers.append(observer)

    def apply(self, effects: Effects) -> None:
        """Takes in new queues and what became of how many jobs, tells the observers, then forgets what was pruned."""
        for queue in effects.made:
            self._add(queue)
        self._rejected += effects.rejected
        changes = [self._change(*pair, jobs) for pair, jobs in effects.moved.items() if jobs]
        try:
            if changes:
                for observer in self._observers:
                    observer(changes)
        finally:
            self._forget(effects)

    def _add(self, queue: Queue) -> None:
        self._queues[queue.queue_id] = queue
        self._by_file.setdefault(queue.file_id, {})[queue.queue_id] = queue
        self._counts[queue.queue_id] = dict.fromkeys(State, 0)

    def _change(self, queue: QueueId, prior: State | None, state: State, jobs: int) -> Change:
        counts, known = self._counts[queue], self._queues[queue]
        if prior is None:
            self._accepted += jobs
        else:
            counts[prior] -= jobs
        counts[state] += jobs
        entry = known.endpoint, state
        self._totals[entry] = self._totals.get(entry, 0) + jobs
        return Change(known, prior, state, jobs)

    def _forget(self, effects: Effects) -> None:
        for (queue, state), jobs in effects.pruned.items():
            self._counts[queue][state] -= jobs
        for each in effects.gone:
            del self._queues[each.queue_id], self._counts[each.queue_id]
            self._by_file.pop(each.file_id, None)
