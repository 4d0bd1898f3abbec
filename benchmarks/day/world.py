"""Lives through a day with real parts: a sandbox, `dispatcher serve` on a spool, a hand that drops files and pulls plugs.

One thread does what the calendar says, in its order, and scrapes in between. It judges nothing: the diary it keeps is
what the recount starts from.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from msgspec import Struct

from benchmarks.day import weather
from benchmarks.day.books import read_all
from benchmarks.day.diary import Diary, Spell
from benchmarks.day.drops import LONG_SECONDS, Planned, Stock, make, plan, stock
from benchmarks.day.keeper import ATTEMPT_SECONDS, IN_FLIGHT, Keeper, a_service
from benchmarks.day.weather import CANCEL, DOWN_SHARE, FRONTS, KILL, STOP, VANISH, Front
from dispatcher.ledger.codes import STATES
from dispatcher.sandbox.process import Sandbox, start_sandbox
from dispatcher.sandbox.settings import load
from tests.sandboxes import client, eventually

END_SECONDS = 300.0
"""How long after the last drop everything must be finished."""
TICK_SECONDS = 0.02
BUSY_SECONDS = 2.5
"""So long before the service is stopped or killed a file comes that keeps it busy: enough to settle and to be read."""
PIECES, PIECE_SECONDS = 3, 0.05
"""How a file is written that is not renamed: well within the settle time."""
OUTPUTS = 100
"""So many outputs are fetched and compared at the end."""

Entry = tuple[float, Callable[[], None]]


class Clock(Struct, frozen=True):
    """The day's own time: seconds since it began."""

    began: float

    def now(self) -> float:
        return time.monotonic() - self.began


def live(folder: Path, seed: int, seconds: float, tell: Callable[[str], None]) -> Diary:
    """Lives through the day; gives what was written down of it."""
    diary = Diary(in_flight=IN_FLIGHT, attempt_seconds=ATTEMPT_SECONDS, tell=tell)
    stocked = stock(seed)
    settings = {"endpoints": weather.MODELS, "record": str(folder / "record.jsonl"), "seed": seed}
    with start_sandbox(load(settings)) as sandbox, a_service(folder, sandbox, diary) as keeper:
        _stock_up(stocked, sandbox, folder)
        busy = [share * seconds - BUSY_SECONDS for share in (STOP, KILL)] + [weather.FRONTS[3].begins * seconds + 0.2]
        files = plan(seed, seconds, busy, VANISH * seconds)
        hand = Hand(keeper, diary, seed, stocked, lossy=seconds >= LONG_SECONDS)
        _follow([*hand.calendar(files), *_troubles(sandbox, keeper, diary, seconds)], hand, keeper, diary)
        _see_out(hand, keeper, diary)
        diary.record = sandbox.record()
        diary.requests = sandbox.counts()["requests"]
        diary.findings += sampled_outputs(sandbox, keeper.spool.path, seed)
    diary.totals, diary.lines = ledger_sums(keeper.spool.ledger)
    return diary


def _stock_up(stocked: Stock, sandbox: Sandbox, folder: Path) -> None:
    stocked.lay_out(folder / "stock")
    with client("s3", sandbox.url) as s3:
        for uri, content in stocked.objects.items():
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            s3.put_object(Bucket=bucket, Key=key, Body=content)


def _follow(calendar: list[Entry], hand: "Hand", keeper: Keeper, diary: Diary) -> None:
    """Does everything in its order and at its time."""
    clock = Clock(time.monotonic())
    diary.began_at = time.time()
    keeper.sandbox.patch(**weather.patch([]))
    keeper.start()
    for at, do in sorted(calendar, key=lambda entry: entry[0]):
        while clock.now() < at:
            keeper.tick()
            hand.tick()
            time.sleep(max(0.0, min(TICK_SECONDS, at - clock.now())))
        do()


def _see_out(hand: "Hand", keeper: Keeper, diary: Diary) -> None:
    """Waits until every file has come back and the metrics have settled; then the last stop, in fine weather."""
    diary.note(f"the last file is dropped: {len(diary.drops)} in all")

    def look() -> bool:
        keeper.tick()
        hand.tick()
        return hand.finished()

    keeper.until_ready()
    try:
        eventually(look, END_SECONDS)
        diary.note("every file has come back")
        diary.finished_at = time.time()
        eventually(keeper.settled, 30.0)
    except AssertionError:
        diary.findings.append(f"after {END_SECONDS} s and 30 more it is not at rest: {hand.missing()}")
        diary.finished_at = diary.finished_at or time.time()
    keeper.stop()
    keeper.until_down()
    keeper.sandbox.patch(faults=[])


def _troubles(sandbox: Sandbox, keeper: Keeper, diary: Diary, seconds: float) -> list[Entry]:
    now: list[Front] = []
    began: dict[str, float] = {}

    def begin(front: Front) -> None:
        now.append(front)
        began[front.name] = time.time()
        sandbox.patch(**weather.patch(now))
        diary.note(f"{front.name}")

    def end(front: Front) -> None:
        now.remove(front)
        sandbox.patch(**weather.patch(now))
        diary.spells.append(Spell(front.name, began[front.name], time.time()))
        diary.note(f"{front.name}: over")

    entries: list[Entry] = []
    for front in FRONTS:
        entries.append((front.begins * seconds, lambda front=front: begin(front)))  # type: ignore[misc]
        entries.append((front.ends * seconds, lambda front=front: end(front)))  # type: ignore[misc]
    return [
        *entries,
        (VANISH * seconds + 0.1, keeper.lose_payloads),
        (STOP * seconds, keeper.stop),
        ((STOP + DOWN_SHARE) * seconds, keeper.start),
        (CANCEL * seconds, keeper.cancel),
        (KILL * seconds, keeper.kill),
        ((KILL + DOWN_SHARE) * seconds, keeper.start),
    ]


class Hand:
    """Drops files, and sees which came back."""

    def __init__(self, keeper: Keeper, diary: Diary, seed: int, stocked: Stock, *, lossy: bool) -> None:
        self._spool = keeper.spool
        self._diary = diary
        self._seed = seed
        self._stock = stocked
        self._lossy = lossy
        # Files whose name lay in the inbox still: dropped on top of it, the first would be lost by us.
        self._put_off: list[Planned] = []

    def calendar(self, files: list[Planned]) -> list[Entry]:
        """When each of the files is dropped."""
        return [(planned.at, lambda planned=planned: self._drop(planned)) for planned in files]  # type: ignore[misc]

    def tick(self) -> None:
        """Tries again what was put off."""
        again, self._put_off = self._put_off, []
        for planned in again:
            self._drop(planned)

    def _drop(self, planned: Planned) -> None:
        if (self._spool.inbox / planned.name).exists():
            self._put_off.append(planned)
            return
        drop, content = make(planned, self._seed, self._stock, lossy=self._lossy)
        if planned.slowly:
            self._write_slowly(planned.name, content)
        else:
            self._spool.drop(planned.name, content)
        self._diary.drops.append(drop)
        self._diary.dropped_at[drop.number] = time.time()
        if len(drop.jobs) >= 100 or planned.kind != "jobs" or planned.name == "daily.jsonl":
            self._diary.note(f"dropped {planned.name}: {len(drop.jobs)} jobs, {len(drop.rejected)} bad lines")

    def _write_slowly(self, name: str, content: bytes) -> None:
        """In the place where it is taken from, piece by piece."""
        size = -(-len(content) // PIECES)
        with (self._spool.inbox / name).open("wb", buffering=0) as file:
            for n in range(PIECES):
                file.write(content[n * size : (n + 1) * size])
                time.sleep(PIECE_SECONDS)

    def finished(self) -> bool:
        """Whether as many results as files are there, and every job file is where it belongs."""
        spool = self._spool
        done = len(spool.names("done")) + len(spool.names("failed"))
        here = done == len(self._diary.drops) == len(spool.names("results"))
        return here and not self._put_off and not spool.names("inbox")

    def missing(self) -> list[str]:
        """What lies in the inbox or in `work/` still."""
        return [*self._spool.names("inbox"), *self._spool.names("work")][:10]


def ledger_sums(path: Path) -> tuple[dict[tuple[str, str], int], tuple[int, int]]:
    """What the ledger of a stopped service says of all time: jobs by endpoint and state, lines accepted and rejected."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT endpoint, state, jobs FROM total").fetchall()
        accepted, rejected = connection.execute("SELECT accepted, rejected FROM ever").fetchone()
    return {(endpoint, STATES[code].value): jobs for endpoint, code, jobs in rows}, (accepted, rejected)


def sampled_outputs(sandbox: Sandbox, spool: Path, seed: int) -> list[str]:
    """Fetches some of the outputs from where the results say they are: each must be the digest that the record has."""
    ended = {event["output_location"]: event for event in sandbox.record() if event["event"] == "finished"}
    rows = [row for one in read_all(spool / "results") for row in one.results if row["status"] == "succeeded"]
    findings = []
    with client("s3", sandbox.url) as s3:
        for row in Random(seed).sample(rows, min(OUTPUTS, len(rows))):
            bucket, _, key = row["output_location"].removeprefix("s3://").partition("/")
            output = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
            if output["sha256"] != ended[row["output_location"]]["payload_sha256"]:
                findings.append(f"the object {row['output_location']} is not its job's output")
    return findings
