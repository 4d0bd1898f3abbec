"""What the other side says of every job: the sandbox's own record against the results. Pure; findings are sentences.

    succeeded   it completed, at the output location of the result, with the job's own payload
    failed      it ended otherwise there, and never completed
    expired     it was taken, and never completed
    dead        it was never taken, as far as the client was told; so were the cancelled

A job that was taken more than once has a reason each time: the submission before was one whose answer was not told, or
the service was killed between the two. Of the latter there are, for each kill and lane, at most twice the in-flight limit.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from msgspec import Struct

from benchmarks.day.books import Book
from benchmarks.day.diary import Row
from benchmarks.day.drops import Wanted

UNTOLD = ("cut", "hang")
"""What the record calls a submission whose answer did not reach the client."""
TAKEN_ONCE_OR_MORE = {"succeeded", "failed", "expired"}
GIVEN_UP = {"dead", "cancelled"}


class Sent(Struct, frozen=True):
    """A job: what it must be, its result, and what the record says of it."""

    wanted: Wanted
    row: Row
    taken: list[Row]
    ended: list[Row]


class Repeats(Struct, frozen=True):
    """Submissions beyond the first of each job, by what explains them."""

    untold: int
    killed: int
    unexplained: list[str]


def collate(books: Iterable[Book], record: Iterable[Row]) -> tuple[dict[str, Sent], list[str]]:
    """All jobs by their InferenceId; what the record has of no job, and what has another's identity, is found."""
    jobs: dict[str, Sent] = {}
    findings = []
    for book in books:
        for row in book.returned.results:
            if row["inference_id"] in jobs:
                findings.append(f"{row['inference_id']} is the InferenceId of two jobs")
            if row["line"] in book.drop.jobs:
                jobs[row["inference_id"]] = Sent(book.drop.jobs[row["line"]], row, [], [])
    strange = set()
    for event in record:
        sent = jobs.get(event["inference_id"])
        if sent is None:
            strange.add(event["inference_id"])
        else:
            (sent.taken if event["event"] == "accepted" else sent.ended).append(event)
    return jobs, findings + [f"{inference_id} was invoked and is no job" for inference_id in sorted(strange)]


def job_findings(jobs: Iterable[Sent]) -> list[str]:
    """What is wrong with the ends of jobs."""
    return [f"{sent.row['inference_id']}: {what}" for sent in jobs for what in _findings(sent)]


def _findings(sent: Sent) -> Iterator[str]:
    status, taken = sent.row["status"], sent.taken
    if (status in TAKEN_ONCE_OR_MORE) != bool(taken) and not (status in GIVEN_UP and _all_untold(taken)):
        yield f"{status}, and the service took it {len(taken)} times"
    if sent.row["attempts"] < len(taken):
        yield f"{sent.row['attempts']} attempts, and the service took it {len(taken)} times"
    if any(event["endpoint"] != sent.wanted.endpoint for event in taken):
        yield "it was sent to another's endpoint"
    if len({event["output_location"] for event in taken}) > 1:
        yield "it has several output keys"
    if any(event["payload_sha256"] not in (None, sent.wanted.sha256) for event in (*taken, *sent.ended)):
        yield "the model got another payload"
    here = [end for end in sent.ended if end["output_location"] == sent.row["output_location"]]
    yield from _end(status, [end["result"] for end in here], [end["payload_sha256"] for end in here], sent.wanted)


def _all_untold(taken: Sequence[Row]) -> bool:
    """Whether the client could not know that it was taken: then it may wait again, and be cancelled or lose its payload."""
    return all(event["verdict"] in UNTOLD for event in taken)


def _end(status: str, results: Sequence[str], payloads: Sequence[str | None], wanted: Wanted) -> Iterator[str]:
    """Whether the status is what the model's ends at the output location say."""
    completed = "completed" in results
    if status == "succeeded" and not completed:
        yield f"succeeded, and the model's ends are {results}"
    elif status == "succeeded" and wanted.sha256 not in payloads:
        yield "succeeded with the output of another payload"
    elif status in ("failed", "expired") and (completed or not results):
        yield f"{status}, and the model's ends are {results}"


def repeats(jobs: Iterable[Sent], kills: Sequence[float], open_seconds: float) -> Repeats:
    """Explains every submission that came after another. A kill explains it where it came between the two, and at most
    `open_seconds` after the first: what was taken longer ago had its receipt recorded.
    """
    untold = killed = 0
    unexplained = []
    for sent in jobs:
        taken = sorted(sent.taken, key=lambda event: float(event["time"]))
        for before, after in pairwise(taken):
            if before["verdict"] in UNTOLD:
                untold += 1
            elif any(before["time"] <= kill <= min(after["time"], before["time"] + open_seconds) for kill in kills):
                killed += 1
            else:
                told = f"{before['verdict']} at {before['time']:.3f}"
                unexplained.append(f"{sent.row['inference_id']}: sent again, though the answer before was {told}")
    return Repeats(untold, killed, unexplained)


def repeat_findings(found: Repeats, kills: int, in_flight: int, lanes: int) -> list[str]:
    """Those without a reason, and more after kills than the promise allows."""
    most = 2 * in_flight * lanes * kills
    over = f"{found.killed} submissions are repeats after {kills} kills: more than {most}"
    return [*found.unexplained, *([over] if found.killed > most else [])]


def told_by_endpoint(record: Iterable[Row]) -> dict[str, int]:
    """How many 202s the record has that were told, by endpoint."""
    told: dict[str, int] = defaultdict(int)
    for event in record:
        if event["event"] == "accepted" and event["verdict"] not in UNTOLD:
            told[event["endpoint"]] += 1
    return dict(told)
