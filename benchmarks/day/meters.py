"""Whether the metrics say what a recount says. Pure; findings are sentences.

`dispatcher_jobs_total` and `dispatcher_lines_total` go on after a restart, because they start from the ledger's sums: the
last process shows those of the whole day. Everything else is counted by one process, so it is compared with what the
sandbox saw in that process's time: exactly for the last one, which ended at rest; for those that were stopped or killed
at work between two bounds, since their last scrape is a little older than their end. What was on the wire at that scrape
is at most the in-flight limit of each lane.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import inf

from benchmarks.day.diary import Diary, Labels, Life, Row, Scrape
from benchmarks.day.drops import ENDPOINTS
from benchmarks.day.recount import UNTOLD, Sent, told_by_endpoint
from tests.programs import FINAL

Requests = Mapping[str, Mapping[str, int]]
AT_REST = ("outstanding_jobs", "outstanding_oldest_age_seconds", "in_flight_attempts", "lane_paused")
OPERATIONS = {
    "PutObject": "put",
    "GetObject": "get",
    "HeadObject": "head",
    "ListObjectsV2": "list",
    "DeleteObjects": "delete",
}
"""What the metrics and the sandbox call the same operation."""
LOST_ON_THE_WAY = ("reset", "midway", "hung_up", "client_gone")
"""Requests that the sandbox did not answer: the SDK's connection pool repeats one that can be repeated, uncounted."""


def all_findings(diary: Diary, jobs: Mapping[str, Sent], rejected: int) -> list[str]:
    """What the metrics of all processes have wrong."""
    last = diary.lives[-1].last
    if last is None:
        return ["the last process was never scraped"]
    found = [
        *line_findings(last, diary.lines, len(jobs), rejected),
        *state_findings(last, jobs.values(), diary.totals),
        *receipt_findings(last, diary.record, 2 * diary.in_flight * len(diary.kills)),
        *rest_findings(last),
    ]
    for number, life in enumerate(diary.lives, 1):
        if life.last is None:
            continue
        slack = 0 if life is diary.lives[-1] else diary.in_flight * len(ENDPOINTS)
        about = [*histogram_findings(life.last), *submission_findings(life, diary.record, jobs, slack)]
        if not slack:
            about += request_findings(life.last, life.requests_before, diary.requests)
            about += attempt_findings(life.last)
        found += [f"process {number}: {what}" for what in about]
    return found


def line_findings(last: Scrape, ledger: tuple[int, int], accepted: int, rejected: int) -> list[str]:
    """Lines by verdict, against what was dropped, and what the ledger says."""
    said = tuple(round(last.sum("dispatcher_lines_total", verdict=verdict)) for verdict in ("accepted", "rejected"))
    wanted = (accepted, rejected)
    if said == wanted == ledger:
        return []
    return [
        f"lines accepted and rejected: dropped were {wanted}, dispatcher_lines_total says {said}, the ledger {ledger}"
    ]


def state_findings(last: Scrape, jobs: Iterable[Sent], totals: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """Jobs by endpoint and state: final ones against the results, all against the ledger, and what came in against what left."""
    ended = Counter((sent.wanted.endpoint, sent.row["status"]) for sent in jobs)
    for endpoint in ENDPOINTS:
        said = {state: round(n) for state, n in _states(last, endpoint).items()}
        for state, n in said.items():
            if state in FINAL and n != ended[endpoint, state]:
                yield f"dispatcher_jobs_total says {n} {state} at {endpoint}, the results {ended[endpoint, state]}"
            if n != totals.get((endpoint, state), 0):
                yield f"dispatcher_jobs_total says {n} {state} at {endpoint}, the ledger {totals.get((endpoint, state), 0)}"
        if said["accepted"] != said["claimed"] + said["cancelled"]:
            yield f"at {endpoint} {said['accepted']} came into accepted and {said['claimed'] + said['cancelled']} left it"


def _states(last: Scrape, endpoint: str) -> dict[str, float]:
    samples = last.samples.items()
    ours = [(dict(labels), n) for (name, labels), n in samples if name == "dispatcher_jobs_total"]
    return {labels["state"]: n for labels, n in ours if labels["endpoint"] == endpoint}


def receipt_findings(last: Scrape, record: Iterable[Row], lost_most: int) -> Iterator[str]:
    """Receipts against the 202s that were told: what is missing was lost by a kill, and that is bounded for each lane."""
    told = told_by_endpoint(record)
    for endpoint in ENDPOINTS:
        submitted = round(last.sum("dispatcher_jobs_total", endpoint=endpoint, state="submitted"))
        lost = told.get(endpoint, 0) - submitted
        if not 0 <= lost <= lost_most:
            yield f"{told.get(endpoint, 0)} 202s were told for {endpoint}, {submitted} jobs came into submitted"


def rest_findings(last: Scrape) -> list[str]:
    """Gauges that must be 0 when all is done."""
    names = [f"dispatcher_{name}" for name in AT_REST]
    return [f"{name} is {last.sum(name)} at the end" for name in names if last.sum(name)]


def histogram_findings(scrape: Scrape) -> Iterator[str]:
    """Buckets that never fall, up to the count."""
    buckets: dict[tuple[str, Labels], list[tuple[float, float]]] = {}
    for (name, labels), n in scrape.samples.items():
        if name.endswith("_bucket"):
            bound = float(dict(labels)["le"])
            others = frozenset(label for label in labels if label[0] != "le")
            buckets.setdefault((name.removesuffix("_bucket"), others), []).append((bound, n))
    for (name, labels), steps in buckets.items():
        bounds, counts = zip(*sorted(steps), strict=True)
        count = scrape.samples[f"{name}_count", labels]
        if list(counts) != sorted(counts) or bounds[-1] != inf or counts[-1] != count:
            yield f"{name}{sorted(labels)}: buckets {counts}, count {count}"


def submission_findings(life: Life, record: Iterable[Row], jobs: Mapping[str, Sent], slack: int) -> Iterator[str]:
    """The comparison's counts, and attempts that were ok, against the 202s that were told in the process's time."""
    assert life.last is not None
    whole = _told(record, jobs, life.began_at, life.ended_at)
    before = _told(record, jobs, life.began_at, life.last.began_at) if slack else whole
    for transport in ("inline", "s3", "reference"):
        ok = round(life.last.sum("dispatcher_attempts_total", transport=transport, outcome="ok"))
        timed = round(life.last.sum("dispatcher_submission_seconds_count", transport=transport))
        # A scrape reads one metric after the other, while jobs go on.
        if transport != "reference" and abs(timed - ok) > slack:
            yield f"{timed} submissions by {transport} are timed, {ok} attempts were ok"
        if not before[transport] - slack <= ok <= whole[transport]:
            yield f"{ok} attempts by {transport} were ok, the sandbox told {whole[transport]}"
    avoided = life.last.sum("dispatcher_s3_puts_avoided_total")
    if abs(avoided - life.last.sum("dispatcher_submission_seconds_count", transport="inline")) > slack:
        yield f"{avoided} uploads were avoided, which is not what went inline"


def _told(record: Iterable[Row], jobs: Mapping[str, Sent], since: float, until: float) -> Counter[str]:
    """How many 202s were told in a time, by the transport as the dispatcher calls it."""
    told: Counter[str] = Counter()
    for event in record:
        if event["event"] == "accepted" and event["verdict"] not in UNTOLD and since <= event["time"] <= until:
            sent = jobs.get(event["inference_id"])
            given = sent is not None and sent.row["transport"] == "reference"
            told["reference" if given else event["transport"]] += 1
    return told


def request_findings(last: Scrape, before: Requests, after: Requests) -> Iterator[str]:
    """Requests by operation, against what the sandbox counted in the process's time."""
    said = last.by("dispatcher_aws_requests_total", "operation")
    seen = {operation: _seen(before, after, operation) for operation in ("invoke", *OPERATIONS.values())}
    unsent = last.sum("dispatcher_attempt_seconds_count", operation="InvokeEndpointAsync", outcome="not_sent")
    if said["InvokeEndpointAsync"] - unsent != seen["invoke"].total():
        yield f"{said['InvokeEndpointAsync']} InvokeEndpointAsync requests, the sandbox saw {seen['invoke'].total()}"
    for name, operation in OPERATIONS.items():
        all_seen = seen[operation].total()
        lost = sum(seen[operation][result] for result in LOST_ON_THE_WAY)
        if not all_seen - lost <= said[name] <= all_seen:
            yield f"{said[name]} {name} requests, the sandbox saw {all_seen}, and cut {lost} of them"


def _seen(before: Requests, after: Requests, operation: str) -> Counter[str]:
    return Counter(after.get(operation, {})) - Counter(before.get(operation, {}))


def attempt_findings(last: Scrape) -> Iterator[str]:
    """The families that count the same thing from two sides agree: requests and their times, attempts and what they consist of."""
    attempts = last.sum("dispatcher_attempts_total")
    for operation in ("InvokeEndpointAsync", "PutObject"):
        requests = last.sum("dispatcher_aws_requests_total", operation=operation)
        timed = last.sum("dispatcher_attempt_seconds_count", operation=operation)
        if requests != timed:
            yield f"{requests} {operation} requests are counted, {timed} are timed"
    puts = last.by("dispatcher_attempt_seconds_count", "outcome")
    failed_puts = sum(
        last.sum("dispatcher_attempt_seconds_count", operation="PutObject", outcome=outcome)
        for outcome in puts
        if outcome != "ok"
    )
    invoked = last.sum("dispatcher_aws_requests_total", operation="InvokeEndpointAsync")
    if attempts != invoked + failed_puts:
        yield f"{attempts} attempts, {invoked} invocations and {failed_puts} uploads that failed"
    if attempts != last.sum("dispatcher_slot_wait_seconds_count"):
        yield f"{attempts} attempts, {last.sum('dispatcher_slot_wait_seconds_count')} waits for a slot"
