"""Both kinds of transports, for suites that ask the same of each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dispatcher.aws.calls import QUIET, Calls
from dispatcher.aws.clients import Clients
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline
from dispatcher.interfaces import Invoker, Stager
from dispatcher.transports.choosing import Kind, Transports, transports
from dispatcher.transports.lean import LeanInvoker, LeanStager
from dispatcher.transports.staging import SdkStager

on_both_kinds = pytest.mark.parametrize("client", ["lean", "sdk"])


@asynccontextmanager
async def chosen(
    client: Kind, opened: Clients, staging: SdkStager | None, deadline: Deadline, calls: Calls
) -> AsyncIterator[Transports]:
    """Transports of that very kind: a lean one that gives way to the SDK's would make a suite say nothing."""
    async with transports(client, opened, staging, connections=4, deadline=deadline, calls=calls) as found:
        assert isinstance(found.invoker, LeanInvoker) == (client == "lean")
        assert isinstance(found.stager, LeanStager) == (client == "lean" and staging is not None)
        yield found


@asynccontextmanager
async def invoking(
    client: Kind, opened: Clients, deadline: Deadline = DEFAULT_DEADLINE, calls: Calls = QUIET
) -> AsyncIterator[Invoker]:
    async with chosen(client, opened, None, deadline, calls) as found:
        yield found.invoker


@asynccontextmanager
async def staging(
    client: Kind,
    opened: Clients,
    uri: str,
    deadline: Deadline = DEFAULT_DEADLINE,
    calls: Calls = QUIET,
    **more: Any,
) -> AsyncIterator[Stager]:
    """`more` is what the SDK's stager is told besides."""
    stager = SdkStager(opened.s3, uri, deadline=deadline, calls=calls, **more)
    async with chosen(client, opened, stager, deadline, calls) as found:
        assert found.stager is not None
        yield found.stager
