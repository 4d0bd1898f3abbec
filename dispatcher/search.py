"""Looks for objects that the service was to write: by folder where that is possible, else key by key.

One LIST tells of 1,000 keys and costs as much as twelve HEADs; but it needs the permission, and a folder of the shard's
own. What is learnt on the way (LIST denied in this bucket, a folder full of strangers) is remembered. An answer that is
none (a fault) makes a place *unasked*: neither there nor missing. `Roots` knows where an endpoint writes at all.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio
from msgspec import Struct

from dispatcher.interfaces import HIDDEN, Completions, Fault, Found
from dispatcher.limits import STREAKS
from dispatcher.model import EndpointName, FailureReason, JobKey

FOLDERS_LISTED = 2
"""Places in more folders than this are asked for by HEAD."""
CALLS_AT_ONCE = 16
SAMPLE = 4
"""So many keys are asked for first: where all of these are refused for a reason that holds for all, the others are not."""


class Sought(Struct, frozen=True, kw_only=True):
    """What is there, and what nobody could say; every other place is empty.

    `fault` is one of the answers that were none, HIDDEN only where all of them were.

    `calls`: S3 requests that were answered. HEADs side by side count as one, or a bucket without LIST would use up in
    one look what a shard may cost, and its stragglers would not be looked for until their deadline.
    """

    found: dict[JobKey, Found]
    unasked: frozenset[JobKey]
    calls: int
    fault: Fault | None = None


class Search:
    """Asks S3 about places (URIs as receipts have them). Safe to use from several tasks."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions
        # Folders that cannot be listed or are not worth it; grows by one per such folder, and there are few.
        self._unlisted: set[str] = set()
        # Buckets (`scheme://authority`) where LIST is denied and HEAD is not: a bucket that is all dark is listed anew.
        self._denied: set[str] = set()
        # Looks at keys, counted so that each sample is another one.
        self._samples = 0

    async def seek(self, places: Mapping[JobKey, str]) -> Sought:
        """What is at these places, one per job."""
        folders: dict[str, dict[JobKey, str]] = {}
        for key, place in places.items():
            folder, _, name = place.rpartition("/")
            folders.setdefault(folder + "/", {})[key] = name
        by_key = len(folders) > FOLDERS_LISTED
        found: dict[JobKey, Found] = {}
        unasked: set[JobKey] = set()
        calls, faults = 0, list[Fault]()
        for folder, names in folders.items():
            one = await (self._heads(folder, names) if by_key else self._folder(folder, names))
            found |= one.found
            unasked |= one.unasked
            calls += one.calls
            faults += [one.fault] if one.fault else []
        return Sought(found=found, unasked=frozenset(unasked), calls=calls, fault=_worst(faults))

    async def _folder(self, folder: str, names: dict[JobKey, str]) -> Sought:
        if len(names) == 1 or folder in self._unlisted or _bucket(folder) in self._denied:
            return await self._heads(folder, names)
        listing = await self._completions.list_folder(folder)
        if isinstance(listing, Fault):
            if listing.reason is FailureReason.ACCESS_DENIED:
                self._denied.add(_bucket(folder))
                return await self._heads(folder, names)
            return Sought(found={}, unasked=frozenset(names), calls=0, fault=listing)
        objects = {one.uri.rpartition("/")[2]: one for one in listing.objects}
        found = {key: objects[name] for key, name in names.items() if name in objects}
        if listing.complete:
            return Sought(found=found, unasked=frozenset(), calls=1)
        self._unlisted.add(folder)
        rest = await self._heads(folder, {key: name for key, name in names.items() if key not in found})
        return Sought(found=found | rest.found, unasked=rest.unasked, calls=2 + rest.calls, fault=rest.fault)

    async def _heads(self, folder: str, names: dict[JobKey, str]) -> Sought:
        self._samples += 1
        step = max(1, len(names) // SAMPLE)
        sample = list(names)[self._samples % step :: step][:SAMPLE]
        first = await self._ask(folder, {key: names[key] for key in sample})
        if first.fault is not None and not first.calls and STREAKS.get(first.fault.reason) == 1:
            self._denied.discard(_bucket(folder))
            return Sought(found={}, unasked=frozenset(names), calls=0, fault=first.fault)
        rest = await self._ask(folder, {key: name for key, name in names.items() if key not in sample})
        return Sought(
            found=first.found | rest.found,
            unasked=first.unasked | rest.unasked,
            calls=max(first.calls, rest.calls),
            fault=_worst([fault for fault in (first.fault, rest.fault) if fault]),
        )

    async def _ask(self, folder: str, names: dict[JobKey, str]) -> Sought:
        found: dict[JobKey, Found] = {}
        unasked: set[JobKey] = set()
        faults: list[Fault] = []

        async def look(key: JobKey) -> None:
            answer = await self._completions.look(folder + names[key])
            if isinstance(answer, Fault):
                unasked.add(key)
                faults.append(answer)
            elif answer is not None:
                found[key] = answer

        await side_by_side(look, list(names))
        answered = int(len(unasked) < len(names))
        return Sought(found=found, unasked=frozenset(unasked), calls=answered, fault=_worst(faults))


class Roots:
    """Where each endpoint writes its outputs: the folder above the extension that we ask for, as its receipts show it."""

    def __init__(self) -> None:
        # None: its receipts have another folder than the one asked for, so that nothing can be found by its key.
        self._roots: dict[EndpointName, str | None] = {}

    def knows(self, endpoint: EndpointName) -> bool:
        """Whether a receipt of this endpoint was seen."""
        return endpoint in self._roots

    def learn(self, endpoint: EndpointName, folder: str, extension: str) -> None:
        """An output for which this extension was asked goes to this folder."""
        ours = f"{extension}/"
        self._roots[endpoint] = folder.removesuffix(ours) if folder.endswith(f"/{ours}") else None

    def folder(self, endpoint: EndpointName, extension: str) -> str | None:
        """Where an output with this extension must be, if that can be said."""
        root = self._roots.get(endpoint)
        return None if root is None else f"{root}{extension}/"


T = TypeVar("T")


async def side_by_side(work: Callable[[T], Awaitable[None]], items: list[T], at_once: int = CALLS_AT_ONCE) -> None:
    """Awaits `work(item)` for every item, at most `at_once` of them at a time."""
    rest = iter(items)

    async def worker() -> None:
        for item in rest:
            await work(item)

    async with anyio.create_task_group() as tasks:
        for _ in range(min(at_once, len(items))):
            tasks.start_soon(worker)


def _worst(faults: list[Fault]) -> Fault | None:
    """One that tells more than that S3 hides what is not there, if any does."""
    return next((fault for fault in faults if fault.code != HIDDEN), faults[0] if faults else None)


def _bucket(folder: str) -> str:
    scheme, _, rest = folder.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
