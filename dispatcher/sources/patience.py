"""What is away for a while is waited for: a folder of the dispatcher's own, or room on a disk.

Somebody moved the folder, a mount comes late, a disk is full until somebody tidies up. What needs it is tried again until it
is there; the rest of the service goes on. Nothing ends because of it, and nothing is lost.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import structlog

from dispatcher.errors import LedgerFullError
from dispatcher.formats.disk import MissingFolderError, NoSpaceError

log = structlog.get_logger(__name__)
T = TypeVar("T")

LOOK_SECONDS = 1.0


async def patient(step: Callable[[], Awaitable[T]]) -> T:
    """Makes the step, again and again while it lacks a folder or room. It must be one that may be made any number of times."""
    told: set[str] = set()
    while True:
        try:
            made = await step()
        except MissingFolderError as error:
            _tell(told, "a folder is missing; waited for until it is back", error)
        except NoSpaceError as error:
            _tell(told, "no room on the disk; waited for until there is some", error)
        except LedgerFullError:
            pass  # the ledger says so itself, and when there is room again
        else:
            if told:
                log.info("what was missing is there again; gone on")
            return made
        await anyio.sleep(LOOK_SECONDS)


def _tell(told: set[str], event: str, error: Exception) -> None:
    if event not in told:
        told.add(event)
        log.error(event, error=str(error))
