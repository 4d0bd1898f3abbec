"""What is told of each request."""

import asyncio

import pytest
from botocore.exceptions import ClientError

from dispatcher.aws.calls import Calls, Operation
from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason


class Witness:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.calls = Calls(observe=self.observe, began=self.open.append, over=self.open.remove)

    def observe(self, operation: Operation, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.seen.append((operation, outcome))


def not_found() -> ClientError:
    return ClientError({"Error": {"Code": "404"}, "ResponseMetadata": {"HTTPStatusCode": 404}}, "HeadObject")


async def test_a_request_is_told_once_with_its_outcome() -> None:
    witness = Witness()

    async def fine() -> str:
        assert witness.open == ["HeadObject"]
        return "x"

    async def missing() -> str:
        raise not_found()

    assert await witness.calls.send("HeadObject", 1, fine) == "x"
    assert await witness.calls.find("HeadObject", 1, missing, lambda _: True) is None
    assert isinstance(await witness.calls.send("HeadObject", 1, missing), Fault)
    assert witness.seen == [("HeadObject", "ok"), ("HeadObject", "missing"), ("HeadObject", "trouble")]
    assert witness.open == []


async def test_a_request_without_an_answer_ends_at_its_deadline() -> None:
    async def silence() -> str:
        await asyncio.Event().wait()
        return "never"

    witness = Witness()
    fault = await witness.calls.send("GetObject", 0.02, silence)
    assert isinstance(fault, Fault)
    # Without hooks on a client nobody knows whether it was sent.
    assert (fault.kind, fault.reason) == (FaultKind.UNKNOWN, FailureReason.TIMEOUT)
    assert witness.seen == [("GetObject", "unknown")]


async def test_a_cancelled_request_has_no_outcome() -> None:
    started = asyncio.Event()

    async def silence() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    witness = Witness()
    task = asyncio.create_task(witness.calls.send("GetObject", 10, silence))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (witness.seen, witness.open) == ([], [])


async def test_a_request_that_sees_to_its_own_deadline_is_told_as_the_others_are() -> None:
    async def refused() -> Fault:
        assert witness.open == ["PutObject"]
        return Fault(kind=FaultKind.THROTTLED, reason=FailureReason.THROTTLED, code="SlowDown", message="x")

    witness = Witness()
    assert isinstance(await witness.calls.watch("PutObject", refused()), Fault)
    assert (witness.seen, witness.open) == ([("PutObject", "throttled")], [])


async def test_a_cancelled_request_of_that_kind_has_no_outcome_either() -> None:
    witness = Witness()
    task = asyncio.create_task(witness.calls.watch("PutObject", asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (witness.seen, witness.open) == ([], [])
