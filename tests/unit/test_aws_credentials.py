"""What is at hand while credentials are renewed, and while their provider is down; asked of the SDK's own objects."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiobotocore.credentials import AioCredentials, AioDeferredRefreshableCredentials, AioRefreshableCredentials

from dispatcher.aws.credentials import LOOK_SECONDS, RETRY_SECONDS, CredentialKeeper

START = datetime(2026, 1, 1, tzinfo=UTC)


class Provider:
    """Gives credentials for an hour each time it is asked, unless it is down or held up. Its clock is moved by hand."""

    def __init__(self, first_seconds: float | None = 3_600) -> None:
        self.asked = 0
        self.begun = asyncio.Event()
        self.down = False
        self.hold = asyncio.Event()
        self.hold.set()
        self.seconds = 0.0
        if first_seconds is None:
            made: Any = AioDeferredRefreshableCredentials(self.renew, "test", self.now)
        else:
            ends = START + timedelta(seconds=first_seconds)
            made = AioRefreshableCredentials("A0", "S0", "T0", ends, self.renew, "test", self.now)
        self.credentials = made
        self.keeper = CredentialKeeper(made, monotonic=lambda: self.seconds)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    async def renew(self) -> dict[str, str]:
        self.asked += 1
        self.begun.set()
        number = self.asked
        await self.hold.wait()
        if self.down:
            raise OSError("the provider is down")
        ends = (self.now() + timedelta(hours=1)).isoformat()
        return {"access_key": f"A{number}", "secret_key": f"S{number}", "token": f"T{number}", "expiry_time": ends}

    def key(self) -> str | None:
        held = self.keeper.current()
        return None if held is None else held.access_key


async def idle(provider: Provider) -> None:
    """Waits for the refresh under way, if there is one."""
    task = provider.keeper._task
    if task is not None:
        await asyncio.wait([task])


async def test_fresh_credentials_are_at_hand_and_nobody_is_asked() -> None:
    provider = Provider()
    held = provider.keeper.current()
    assert held is not None
    assert (held.access_key, held.secret_key, held.token) == ("A0", "S0", "T0")
    assert provider.keeper.current() is held, "one set is one object"
    assert provider.asked == 0


async def test_before_their_end_they_are_renewed_while_requests_go_on() -> None:
    provider = Provider()
    provider.keeper.current()
    provider.seconds = 3_600 - 14 * 60
    provider.hold.clear()
    assert [provider.key() for _ in range(200)] == ["A0"] * 200
    await provider.begun.wait()
    provider.hold.set()
    await idle(provider)
    provider.seconds += LOOK_SECONDS
    assert provider.key() == "A1"
    assert provider.asked == 1


async def test_valid_credentials_are_used_to_their_end_while_the_provider_is_down() -> None:
    provider = Provider()
    provider.down = True
    for seconds in range(3_600 - 16 * 60, 3_600, 20):
        provider.seconds = seconds
        assert provider.key() == "A0"
        assert (await provider.keeper.renewed()).access_key == "A0"
        await idle(provider)
    provider.seconds = 3_601
    assert provider.key() is None
    with pytest.raises(OSError, match="down"):
        await provider.keeper.renewed()


async def test_a_provider_that_is_down_is_not_pestered_while_there_is_time() -> None:
    provider = Provider()
    provider.down = True
    for second in range(60):
        provider.seconds = 3_000 + second
        assert provider.key() == "A0"
        await idle(provider)
    assert provider.asked == 60 / RETRY_SECONDS


async def test_at_their_end_nobody_waits_for_the_next_attempt_to_be_due() -> None:
    provider = Provider()
    provider.down, provider.seconds = True, 3_597
    assert provider.key() == "A0"
    await idle(provider)
    provider.down, provider.seconds = False, 3_601
    assert (await provider.keeper.renewed()).access_key == "A2"


async def test_many_who_wait_make_one_refresh() -> None:
    provider = Provider(first_seconds=-1)
    provider.hold.clear()
    waiting = [asyncio.create_task(provider.keeper.renewed()) for _ in range(200)]
    await provider.begun.wait()
    provider.hold.set()
    found = {(await task).access_key for task in waiting}
    assert (found, provider.asked) == ({"A1"}, 1)


async def test_a_provider_that_hangs_is_not_asked_a_second_time_meanwhile() -> None:
    provider = Provider(first_seconds=-1)
    provider.hold.clear()
    for seconds in range(30):
        provider.seconds = seconds
        assert provider.key() is None
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task(), provider.keeper._task}
    provider.hold.set()
    assert (await provider.keeper.renewed()).access_key == "A1"


async def test_a_provider_that_is_down_is_asked_once_a_second_and_all_hear_of_it() -> None:
    provider = Provider(first_seconds=-1)
    provider.down = True
    for _ in range(50):
        with pytest.raises(OSError, match="down"):
            await provider.keeper.renewed()
    assert provider.asked == 1
    provider.seconds += LOOK_SECONDS
    provider.down = False
    assert (await provider.keeper.renewed()).access_key == "A2"


async def test_whoever_stops_waiting_leaves_the_refresh_to_the_others() -> None:
    provider = Provider(first_seconds=-1)
    provider.hold.clear()
    first, second = (asyncio.create_task(provider.keeper.renewed()) for _ in range(2))
    await provider.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    provider.hold.set()
    assert (await second).access_key == "A1"


async def test_what_another_client_has_renewed_is_seen() -> None:
    provider = Provider()
    assert provider.key() == "A0"
    provider.seconds = 3_600 - 60
    await provider.credentials.get_frozen_credentials()
    assert provider.key() == "A1"
    assert provider.asked == 1


async def test_credentials_that_are_fetched_at_first_use_are_waited_for() -> None:
    provider = Provider(first_seconds=None)
    assert provider.key() is None
    assert (await provider.keeper.renewed()).access_key == "A1"


async def test_keys_without_an_end_are_fetched_once() -> None:
    keeper = CredentialKeeper(AioCredentials("A", "S"))
    held = await keeper.renewed()
    assert (held.access_key, held.token) == ("A", None)
    assert keeper.current() is held


async def test_a_request_that_is_about_to_leave_gets_what_was_last() -> None:
    provider = Provider()
    provider.keeper.current()
    provider.down, provider.seconds = True, 7_200
    assert provider.keeper.current() is None
    assert provider.keeper.latest().access_key == "A0"
    await provider.keeper.aclose()


async def test_a_refresh_under_way_ends_with_its_keeper() -> None:
    provider = Provider(first_seconds=-1)
    provider.hold.clear()
    provider.keeper.current()
    await provider.begun.wait()
    await provider.keeper.aclose()
    assert provider.keeper._task is None
