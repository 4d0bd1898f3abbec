"""The service and S3 in memory, driven by the loop's time: what it accepts, when outputs appear, what goes wrong.

Nothing here is a task or a timer: an output is an object that is visible from a moment on, so that the service goes on
while the dispatcher under test is dead. A test changes the `Weather` at any time.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from math import floor

import anyio
from msgspec import Struct

from dispatcher.interfaces import Fault, FaultKind, FileSlice, Found, Invocation, Listing
from dispatcher.model import EndpointName, FailureReason, InferenceId, Receipt

EPOCH = 1_800_000_000.0
LISTED_MAX = 2_000
STAGING = "s3://staging/inputs/"


class LoopClock:
    """The loop's virtual time; the wall clock began at EPOCH."""

    def now(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def fault(kind: FaultKind, reason: FailureReason) -> Fault:
    return Fault(kind=kind, reason=reason, code=reason.value, message=f"{reason} as the test wants it")


THROTTLED = fault(FaultKind.THROTTLED, FailureReason.THROTTLED)
BUSY = fault(FaultKind.TROUBLE, FailureReason.SERVICE_ERROR)
MISSING = fault(FaultKind.REFUSED, FailureReason.ENDPOINT_MISSING)
INVALID = fault(FaultKind.REFUSED, FailureReason.VALIDATION_ERROR)
NO_INLINE = fault(FaultKind.REFUSED, FailureReason.INLINE_REFUSED)
NO_CONNECTION = fault(FaultKind.NOT_SENT, FailureReason.NETWORK)
CUT = fault(FaultKind.UNKNOWN, FailureReason.NETWORK)
DENIED = fault(FaultKind.TROUBLE, FailureReason.ACCESS_DENIED)
NO_BUCKET = fault(FaultKind.TROUBLE, FailureReason.BUCKET)
SLOW_DOWN = fault(FaultKind.THROTTLED, FailureReason.THROTTLED)


class Run(Struct, frozen=True):
    """What becomes of an accepted request: seconds from the 202 until its output, or its failure object; None: never."""

    output_after: float | None
    failure_after: float | None = None


class Weather(Struct):
    """What the service does; None and False mean that all is well.

    `invoke` refuses a request, `cut` loses the 202 of one that was taken, `runs` is the model's side. `s3` is asked with
    LIST, HEAD, GET, PUT or DELETE and the place, for each place of a DELETE. `flat` ignores the output extension asked for,
    `own_names` the name too.
    """

    invoke: Callable[[Invocation], Fault | None] = lambda _: None
    cut: Callable[[Invocation], bool] = lambda _: False
    runs: Callable[[Invocation], Run] = lambda _: Run(1.0)
    s3: Callable[[str, str], Fault | None] = lambda _operation, _place: None
    latency_seconds: Callable[[], float] = lambda: 0.02
    s3_seconds: Callable[[], float] = lambda: 0.01
    flat: bool = False
    own_names: bool = False
    has_failure_path: bool = True


class Acceptance(Struct, frozen=True):
    """A request that the service took."""

    invocation: Invocation
    at: float
    receipt: Receipt


class Stored(Struct, frozen=True):
    """An object of S3, there from `at` on."""

    at: float
    content: bytes


async def _nothing(_: Invocation) -> None:
    return None


class Service:
    """Invoker, Stager and Completions in one; `accepted` is its append-only record. Checks nothing of it itself."""

    def __init__(self, clock: LoopClock, weather: Weather) -> None:
        self.weather = weather
        self.accepted: dict[InferenceId, list[Acceptance]] = defaultdict(list)
        self.calls: Counter[str] = Counter()
        self.sends: list[Invocation] = []
        self.staged: dict[str, float] = {}
        self.discards: list[str] = []
        self.most_on_wire: Counter[EndpointName] = Counter()
        self.before_send: Callable[[Invocation], Awaitable[None]] = _nothing
        """Called before anything of a request is sent."""
        self.before_discard: Callable[[str], Awaitable[None]]
        self._clock = clock
        self._on_wire: Counter[EndpointName] = Counter()
        self._folders: dict[str, dict[str, Stored]] = defaultdict(dict)

    # --- Invoker ---

    async def invoke(self, invocation: Invocation) -> Receipt | Fault:
        with self._wire(invocation.endpoint):
            await self.before_send(invocation)
            self.sends.append(invocation)
            await anyio.sleep(self.weather.latency_seconds() / 2)
            refused = self.weather.invoke(invocation)
            answer = refused or self._accept(invocation)
            await anyio.sleep(self.weather.latency_seconds() / 2)
            return answer if refused or not self.weather.cut(invocation) else CUT

    @contextmanager
    def _wire(self, endpoint: EndpointName) -> Iterator[None]:
        self._on_wire[endpoint] += 1
        self.most_on_wire[endpoint] = max(self.most_on_wire[endpoint], self._on_wire[endpoint])
        try:
            yield
        finally:
            self._on_wire[endpoint] -= 1

    def _accept(self, invocation: Invocation) -> Receipt:
        place = self._place(invocation)
        failure = f"s3://failures/{place}" if self.weather.has_failure_path else None
        receipt = Receipt(f"s3://out/{place}", failure)
        now = self._clock.now()
        self.accepted[invocation.inference_id].append(Acceptance(invocation, now, receipt))
        run = self.weather.runs(invocation)
        if run.output_after is not None:
            self.put(receipt.output_location, now + run.output_after, b"{}")
        if run.failure_after is not None and failure is not None:
            self.put(failure, now + run.failure_after, b"the model failed")
        return receipt

    def _place(self, invocation: Invocation) -> str:
        own_names = self.weather.own_names
        asked = None if own_names else invocation.filename
        extension = None if own_names or self.weather.flat else invocation.output_path_extension
        name = asked or f"{invocation.inference_id}-{len(self.sends)}.out"
        return "/".join(part for part in (invocation.endpoint, extension, name) if part)

    # --- Stager ---

    async def stage(self, key: str, payload: bytes | FileSlice, content_type: str | None) -> str | Fault:
        failed = await self._s3("PUT", STAGING + key)
        if failed is not None:
            return failed
        self.staged[STAGING + key] = self._clock.now()
        return STAGING + key

    async def discard(self, keys: Sequence[str]) -> dict[str, Fault]:
        if not keys:
            return {}
        await self._request("DELETE")
        asked = {key: self.weather.s3("DELETE", STAGING + key) for key in keys}
        for key, failed in asked.items():
            if failed is None and self.staged.pop(STAGING + key, None) is not None:
                self.discards.append(key)
                await self.before_discard(key)
        return {key: failed for key, failed in asked.items() if failed is not None}

    # --- Completions ---

    async def list_folder(self, folder: str) -> Listing | Fault:
        failed = await self._s3("LIST", folder)
        if failed is not None:
            return failed
        objects = [self._found(folder, name) for name in sorted(self._folders[folder]) if self._visible(folder + name)]
        self.calls["LIST"] += len(objects) > LISTED_MAX / 2
        return Listing(objects[:LISTED_MAX], complete=len(objects) <= LISTED_MAX)

    async def look(self, location: str) -> Found | Fault | None:
        failed = await self._s3("HEAD", location)
        if failed is not None:
            return failed
        return self._found(*_split(location)) if self._visible(location) else None

    async def read(self, location: str, max_bytes: int) -> bytes | Fault | None:
        failed = await self._s3("GET", location)
        if failed is not None:
            return failed
        folder, name = _split(location)
        return self._folders[folder][name].content[:max_bytes] if self._visible(location) else None

    async def _s3(self, operation: str, place: str) -> Fault | None:
        await self._request(operation)
        return self.weather.s3(operation, place)

    async def _request(self, operation: str) -> None:
        self.calls[operation] += 1
        await anyio.sleep(self.weather.s3_seconds())

    # --- objects ---

    def put(self, location: str, at: float, content: bytes) -> None:
        """An object that is there from `at` on; the first one of a place stays."""
        folder, name = _split(location)
        old = self._folders[folder].get(name)
        if old is None or at < old.at:
            self._folders[folder][name] = Stored(at, content)

    def visible_since(self, location: str | None) -> float | None:
        """From when on the object is there; None if it never is."""
        folder, name = _split(location or "s3:///")
        stored = self._folders[folder].get(name)
        return stored.at if stored else None

    def _visible(self, location: str) -> bool:
        since = self.visible_since(location)
        return since is not None and since <= self._clock.now()

    def _found(self, folder: str, name: str) -> Found:
        stored = self._folders[folder][name]
        return Found(folder + name, len(stored.content), float(floor(stored.at)))


def _split(location: str) -> tuple[str, str]:
    folder, _, name = location.rpartition("/")
    return folder + "/", name
