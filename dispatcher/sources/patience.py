"""What is away for a while is waited for: a folder of the dispatcher's own, the right to write into it, or room on a disk.

Somebody moved the folder, a mount comes late or turned read-only, a disk is full until somebody tidies up. What needs it is
tried again until it works; the rest of the service goes on. Nothing ends because of it, and nothing is lost.

Who needs what the step makes waits for it (`patient`). Who does not hands the step over (`Waiting`) and goes on.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import structlog

from dispatcher.errors import LedgerFullError
from dispatcher.formats.disk import PassingFaultError

log = structlog.get_logger(__name__)
T = TypeVar("T")
Step = Callable[[], Awaitable[None]]

LOOK_SECONDS = 1.0
SIDE_BY_SIDE = 4
"""Steps of one place that are made at once when it is back."""
BACK = "what was missing is there again; gone on"


async def patient(step: Callable[[], Awaitable[T]]) -> T:
    """Makes the step, again and again while it lacks a folder or room. It must be one that may be made any number of times."""
    told: set[str] = set()
    while True:
        try:
            made = await step()
        except PassingFaultError as error:
            if error.waited_for not in told:
                told.add(error.waited_for)
                log.error(error.waited_for, error=str(error))
        except LedgerFullError:
            pass  # the ledger says so itself, and when there is room again
        else:
            if told:
                log.info(BACK)
            return made
        await anyio.sleep(LOOK_SECONDS)


class Waiting:
    """Steps that nobody waits for, made as soon as they can be. Each must be one that may be made any number of times.

    They are kept by the place that they lack (one of `places`, else the path itself): it is told once that it is lacked,
    however many steps lack it, and once that all went on. A look tries one step of each place, and goes on with the others
    if that was made; one that fails goes to the back, so that its own trouble holds up no other. Memory: a step each.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self._places = places
        # By place; an empty one is there only while its last steps are being tried.
        self._steps: dict[str, deque[Step]] = {}

    async def make(self, step: Step) -> None:
        """Makes the step now, or keeps it for later. Raises what it raises but for what is waited for."""
        await self._lacked(step)

    async def run(self) -> None:
        """Makes what is kept, until it is cancelled. Raises as `make` does."""
        while True:
            await anyio.sleep(LOOK_SECONDS)
            for place in list(self._steps):
                await self._look(place)

    async def _look(self, place: str) -> None:
        steps = self._steps[place]
        if await self._lacked(steps.popleft()) != place:
            async with anyio.create_task_group() as tasks:
                for _ in range(SIDE_BY_SIDE):
                    tasks.start_soon(self._make_all, place)
        if not steps:
            del self._steps[place]
            if place:
                log.info(BACK, place=place)

    async def _make_all(self, place: str) -> None:
        """Makes what lacked this place until one still lacks it."""
        steps = self._steps[place]
        while steps and await self._lacked(steps.popleft()) != place:
            pass

    async def _lacked(self, step: Step) -> str | None:
        """Makes the step: None; or keeps it: what it lacks, "" for room in the ledger."""
        try:
            await step()
        except PassingFaultError as error:
            return self._keep(step, self._place(error.path), error)
        except LedgerFullError:
            return self._keep(step, "", None)  # the ledger says so itself, and when there is room again
        return None

    def _keep(self, step: Step, place: str, error: PassingFaultError | None) -> str:
        if place not in self._steps and error is not None:
            log.error(error.waited_for, place=place, error=str(error))
        self._steps.setdefault(place, deque()).append(step)
        return place

    def _place(self, path: str) -> str:
        return next((str(place) for place in self._places if Path(path).is_relative_to(place)), path)
