"""What happened on a day, as those who lived through it wrote it down: lives of the service, troubles, scrapes, drops."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from msgspec import Struct, field
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.day.drops import Drop

Row = dict[str, Any]
Labels = frozenset[tuple[str, str]]


class Scrape(Struct, frozen=True):
    """What /metrics said, and how long it took to say so."""

    began_at: float
    seconds: float
    samples: dict[tuple[str, Labels], float]

    def sum(self, name: str, **labels: str) -> float:
        """The sum over all series of a name that have these labels."""
        wanted = labels.items()
        return sum(value for (own, has), value in self.samples.items() if own == name and wanted <= has)

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of a name by the values of one label."""
        values = {dict(has)[label] for own, has in self.samples if own == name}
        return {value: self.sum(name, **{label: value}) for value in values}


def scraped(began_at: float, seconds: float, text: str) -> Scrape:
    """A scrape, from the text of the page."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return Scrape(began_at, seconds, {(one.name, frozenset(one.labels.items())): one.value for one in samples})


class Life(Struct, kw_only=True):
    """One process of the service, from its start to its end; times are of the wall clock."""

    began_at: float
    requests_before: dict[str, dict[str, int]]
    """What the sandbox had counted when it began."""
    ready_seconds: float = 0.0
    end: Literal["running", "SIGTERM", "SIGKILL"] = "running"
    ended_at: float = 0.0
    drain_seconds: float = 0.0
    peak_bytes: int = 0
    slowest_scrape_seconds: float = 0.0
    scrapes: int = 0
    last: Scrape | None = None


class Spell(Struct, frozen=True):
    """Bad weather of one kind."""

    name: str
    began_at: float
    ended_at: float


class Diary(Struct, kw_only=True):
    """All of a day."""

    in_flight: int
    attempt_seconds: float
    tell: Callable[[str], None] = print
    began_at: float = field(default_factory=time.time)
    lives: list[Life] = []
    spells: list[Spell] = []
    drops: list[Drop] = []
    dropped_at: dict[int, float] = {}
    findings: list[str] = []
    """What went wrong that is no matter of counting."""
    finished_at: float = 0.0
    record: list[Row] = []
    requests: dict[str, dict[str, int]] = {}
    """What the sandbox counted of the whole day."""
    totals: dict[tuple[str, str], int] = {}
    """What the ledger says at the end: jobs that ever came into a state, by endpoint and state."""
    lines: tuple[int, int] = (0, 0)
    """What the ledger says at the end: lines accepted and rejected."""

    def note(self, text: str) -> None:
        """Something happened."""
        seconds = time.time() - self.began_at
        self.tell(f"{int(seconds // 60):02}:{seconds % 60:04.1f}  {text}")

    @property
    def kills(self) -> list[float]:
        """When the service was killed."""
        return [life.ended_at for life in self.lives if life.end == "SIGKILL"]


def counted(requests: dict[str, dict[str, int]], words: Iterable[str]) -> int:
    """How many requests ended with a result that contains one of these words."""
    each = [(result, number) for results in requests.values() for result, number in results.items()]
    return sum(number for result, number in each if any(word in result for word in words))
