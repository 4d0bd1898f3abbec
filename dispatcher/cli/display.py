"""How a run looks: a bar on a terminal, a plain line now and then elsewhere. All of it on stderr; stdout stays for data."""

import sys
import time
from pathlib import Path
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from dispatcher.model import FINAL_STATES, JobFile, State
from dispatcher.oneshot import Progress

PLAIN_SECONDS = 5.0


class Display:
    """Shows progress; give its `report` to a run. A context manager, because a bar must be put away."""

    def __init__(self, *, no_wait: bool) -> None:
        self._no_wait = no_wait
        self._bar: Bar | None = None
        self._said_at = time.monotonic()
        self._said = ""

    def __enter__(self) -> "Display":
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("reading", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, progress: Progress) -> None:
        """Shows how far it is."""
        done = self._done(progress)
        if self._bar is not None:
            total = None if progress.reading else progress.accepted
            self._bar.update(self._task, completed=done, total=total, description=_described(progress))
        elif time.monotonic() - self._said_at >= PLAIN_SECONDS:
            self._say(
                f"{done} of {progress.accepted}{' (reading)' if progress.reading else ''}: {_described(progress)}"
            )

    def stopping(self) -> None:
        """Says what a stop waits for, and how not to wait."""
        click.echo("stopping once what is on the wire is answered; a second signal ends it at once", err=True)

    def abandoned(self) -> None:
        """Leaves the terminal as it was found: the process ends now."""
        if self._bar is not None:
            self._bar.stop()
        click.echo("interrupted before anything was accepted", err=True)

    def ended(self, file: JobFile, tally: dict[State, int], folder: Path) -> None:
        """One line for each job file at the end."""
        parts = [f"{tally[state]} {state}" for state in FINAL_STATES if tally[state]]
        parts += [f"{file.rejected} rejected"] if file.rejected else []
        outstanding = sum(tally.values()) - sum(tally[state] for state in FINAL_STATES)
        parts += [f"{outstanding} outstanding"] if outstanding else []
        where = f"; results in {folder}" if not outstanding else ""
        if self._bar is not None:
            self._bar.stop()
        click.echo(f"{file.name}: {file.lines} lines: {', '.join(parts) or 'nothing'}{where}", err=True)

    def _done(self, progress: Progress) -> int:
        waiting = progress.states[State.SUBMITTED] if self._no_wait else 0
        return progress.final + waiting

    def _say(self, text: str) -> None:
        self._said_at = time.monotonic()
        if text != self._said:
            click.echo(text, err=True)
            self._said = text


def _described(progress: Progress) -> str:
    if progress.paused:
        return "; ".join(f"{endpoint} paused: {', '.join(why)}" for endpoint, why in progress.paused.items())
    shown = [state for state in (*FINAL_STATES, State.SUBMITTED, State.AMBIGUOUS) if progress.states[state]]
    return ", ".join(f"{progress.states[state]} {state}" for state in shown) or "starting"
