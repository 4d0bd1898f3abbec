"""The loop's end of the ledger's thread: what it reports, and waiting for its beginning and its end."""

import asyncio
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from dispatcher.errors import DispatcherError
from dispatcher.ledger import reading
from dispatcher.ledger.calls import Inbox
from dispatcher.ledger.store import Store
from dispatcher.ledger.tally import Sums

T = TypeVar("T")


class LedgerThread:
    """The loop's end of the ledger's thread. `opened` and `closed` are set once, by the thread's two reports."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.inbox = Inbox()
        self.opened: asyncio.Future[Sums] = loop.create_future()
        self.closed: asyncio.Future[DispatcherError | None] = loop.create_future()
        self.worker: Thread | None = None
        self._loop = loop

    async def ended(self) -> DispatcherError | None:
        """Waits for the thread's end; the error that closing met."""
        error = await asyncio.shield(self.closed)
        if self.worker is not None:
            # Its report was the last thing it did, so this takes no time.
            self.worker.join()
        return error

    def posting(self, take: Callable[[T], None]) -> Callable[[T], None]:
        """`take`, called from the thread, run on the loop; nothing where the loop is gone and nobody waits any more."""

        def post(value: T) -> None:
            try:
                self._loop.call_soon_threadsafe(take, value)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise

        return post

    def report_open(self, store: Store) -> None:
        """From the thread: the file is open; reads all that the loop's side must know of it."""
        self.posting(self._set_opened)(reading.sums(store))

    def report_closed(self, error: DispatcherError | None) -> None:
        """From the thread: it ends, with the error that closing or opening met."""
        self.posting(self._set_closed)(error)

    def _set_opened(self, opened: Sums) -> None:
        if not self.opened.done():
            self.opened.set_result(opened)

    def _set_closed(self, error: DispatcherError | None) -> None:
        if error is not None and not self.opened.done():
            self.opened.set_exception(error)
        self.closed.set_result(error)
