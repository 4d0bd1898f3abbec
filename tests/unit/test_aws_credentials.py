"""Who is asked for keys, and when; the SDK's chain is played, and time is a number."""

import asyncio
from typing import Any, NamedTuple

import pytest
from botocore.exceptions import CredentialRetrievalError

from dispatcher.aws.credentials import (
    ANSWER_SECONDS,
    EARLY_SECONDS,
    LOOK_SECONDS,
    PAUSE_MAX_SECONDS,
    WAIT_SECONDS,
    Credentials,
    ProviderError,
)


class Keys(NamedTuple):
    access_key: str
    account_id: str | None = None
    secret_key: str = "secret"
    token: str | None = None


class Chain:
    """A provider and its keys. `lasts_seconds` None: without an end; `away`: it fails; `gate`: it answers when that is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.gives = "first"
        self.lasts_seconds: float | None = 3_600.0
        self.away = False
        self.calls = 0
        self.token: Any = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self) -> Keys:
        self.calls += 1
        await self.gate.wait()
        if self.away:
            raise OSError("nobody answers")
        return Keys(self.gives, "123", token=self.token)

    async def load(self) -> Any:
        keys = await self.ask()
        return Static(keys) if self.lasts_seconds is None else Expiring(self, keys, self.now + self.lasts_seconds)


class Static:
    method = "file"

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def get_frozen_credentials(self) -> Keys:
        return self._keys


class Expiring:
    """As the SDK's: asks again when the end is near and somebody wants the keys."""

    method = "container"

    def __init__(self, chain: Chain, keys: Keys, ends_at: float) -> None:
        self._chain, self._keys, self._ends_at = chain, keys, ends_at
        self._is_new = True

    def refresh_needed(self, seconds: float) -> bool:
        return self._ends_at - self._chain.now < seconds

    async def get_frozen_credentials(self) -> Keys:
        if self.refresh_needed(EARLY_SECONDS) and not self._is_new:
            self._keys = await self._chain.ask()
            self._ends_at = self._chain.now + (self._chain.lasts_seconds or 0)
        self._is_new = False
        return self._keys


async def opened(chain: Chain) -> Credentials:
    made = Credentials(chain.load, lambda: chain.now)
    assert await made.open()
    return made


async def key(credentials: Credentials) -> str:
    """The key that a request is signed with; whatever goes on beside it comes to its end first."""
    found = (await credentials.get_frozen_credentials()).access_key
    for _ in range(10):
        await asyncio.sleep(0)
    return str(found)


EXPIRED = {"Error": {"Code": "ExpiredTokenException"}}


def begun(credentials: Credentials) -> dict[str, Any]:
    """The context of a call of the SDK's that begins now."""
    context: dict[str, Any] = {}
    credentials.began(model=None, context=context)
    return context


async def test_keys_that_last_are_asked_for_once() -> None:
    chain = Chain()
    credentials = await opened(chain)
    assert {await key(credentials) for _ in range(100)} == {"first"}
    assert (chain.calls, credentials.method, await credentials.get_account_id()) == (1, "container", "123")


async def test_near_their_end_keys_are_renewed_beside_the_requests() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now, chain.gives = 3_600.0 - EARLY_SECONDS + 1, "second"
    chain.gate.clear()
    assert [await key(credentials) for _ in range(50)] == ["first"] * 50
    assert chain.calls == 2
    chain.gate.set()
    await key(credentials)
    assert await key(credentials) == "second"
    assert chain.calls == 2


async def test_a_renewal_that_brings_nothing_new_is_made_again_after_pauses_that_grow() -> None:
    chain = Chain()
    chain.lasts_seconds = 600.0
    credentials = await opened(chain)
    for _ in range(500):
        assert await key(credentials) == "first"
        chain.now += 1.0
    assert chain.calls <= 24


async def test_valid_keys_are_gone_on_with_while_nobody_gives_others() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now, chain.away = 3_599.0, True
    assert [await key(credentials) for _ in range(20)] == ["first"] * 20
    assert chain.calls == 2


async def test_keys_that_have_ended_are_waited_for_by_all_and_asked_for_once() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now, chain.gives = 3_601.0, "second"
    assert set(await asyncio.gather(*(key(credentials) for _ in range(20)))) == {"second"}
    assert chain.calls == 2


async def test_without_valid_keys_a_request_fails_and_says_why_and_a_later_one_finds_new_ones() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now, chain.away = 3_601.0, True
    for _ in range(10):
        with pytest.raises(CredentialRetrievalError, match="nobody answers"):
            await key(credentials)
    assert chain.calls == 2
    chain.now, chain.away, chain.gives = chain.now + 60, False, "second"
    assert await key(credentials) == "second"


async def test_refused_keys_are_looked_for_in_the_whole_chain() -> None:
    chain = Chain()
    chain.lasts_seconds = None
    credentials = await opened(chain)
    chain.gives = "second"
    assert await key(credentials) == "first"
    credentials.refused(parsed=EXPIRED, context=begun(credentials))
    await key(credentials)
    assert await key(credentials) == "second"
    assert chain.calls == 2


async def test_keys_that_are_refused_again_and_again_are_not_asked_for_each_time() -> None:
    chain = Chain()
    credentials = await opened(chain)
    for _ in range(100):
        credentials.refused(parsed=EXPIRED, context=begun(credentials))
        await key(credentials)
        chain.now += 1.0
    assert chain.calls <= 12


async def test_refusals_that_come_late_say_nothing_of_newer_keys() -> None:
    chain = Chain()
    credentials = await opened(chain)
    calls = [begun(credentials) for _ in range(4)]
    chain.gives = "second"
    credentials.refused(parsed=EXPIRED, context=calls.pop())
    chain.gate.clear()
    await key(credentials)
    credentials.refused(parsed=EXPIRED, context=calls.pop())
    chain.gate.set()
    await key(credentials)
    for context in calls:
        credentials.refused(parsed=EXPIRED, context=context)
    for _ in range(60):
        assert await key(credentials) == "second"
        chain.now += 1.0
    assert chain.calls == 2


async def test_other_refusals_say_nothing_of_the_keys() -> None:
    chain = Chain()
    credentials = await opened(chain)
    answers: list[dict[str, Any]] = [{}, {"Error": {"Code": "ThrottlingException"}}, {"Error": {}}]
    for answer in answers:
        credentials.refused(parsed=answer, context=begun(credentials))
        await key(credentials)
    assert chain.calls == 1


async def test_a_renewal_that_is_on_ends_with_its_owner() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now = 3_600.0 - 1
    chain.gate.clear()
    await key(credentials)
    await credentials.aclose()


# --- at hand, without waiting ---


def at_hand(credentials: Credentials) -> str | None:
    found = credentials.current()
    return None if found is None else found.access_key


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_keys_are_at_hand_and_one_set_is_one_object() -> None:
    chain = Chain()
    credentials = await opened(chain)
    first = credentials.current()
    chain.now += LOOK_SECONDS
    assert credentials.current() is first
    assert at_hand(credentials) == "first"
    assert chain.calls == 1


async def test_what_is_at_hand_is_renewed_beside_the_requests_and_seen_at_once() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now, chain.gives = 3_600.0 - EARLY_SECONDS + 1, "second"
    assert [at_hand(credentials) for _ in range(50)] == ["first"] * 50
    await settled()
    assert at_hand(credentials) == "second"
    assert chain.calls == 2


async def test_keys_that_have_ended_are_not_at_hand_though_a_request_may_leave_with_them() -> None:
    chain = Chain()
    credentials = await opened(chain)
    assert at_hand(credentials) == "first"
    chain.now, chain.away = 3_601.0, True
    assert at_hand(credentials) is None
    assert credentials.latest().access_key == "first"
    await settled()
    chain.now, chain.away, chain.gives = chain.now + 60, False, "second"
    assert at_hand(credentials) is None
    await settled()
    assert at_hand(credentials) == "second"


async def test_keys_that_the_service_refused_are_renewed_at_the_next_look() -> None:
    chain = Chain()
    chain.lasts_seconds = None
    credentials = await opened(chain)
    assert at_hand(credentials) == "first"
    chain.gives = "second"
    credentials.distrust(credentials.latest())
    at_hand(credentials)
    await settled()
    assert at_hand(credentials) == "second"


# --- a provider that hangs ---


async def passes(chain: Chain, seconds: float) -> None:
    """So much time passes, for the chain's clock and for the loop's."""
    chain.now += seconds
    await asyncio.sleep(seconds)
    await settled()


@pytest.mark.looptime
async def test_a_renewal_that_hangs_is_given_up_and_made_again() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now, chain.gives = 3_600.0 - EARLY_SECONDS + 1, "second"
    chain.gate.clear()
    assert at_hand(credentials) == "first"
    await passes(chain, ANSWER_SECONDS + 1)
    assert at_hand(credentials) == "first", "valid keys are gone on with"
    await passes(chain, 2.0)
    chain.gate.set()
    assert at_hand(credentials) == "first"
    await settled()
    assert at_hand(credentials) == "second"


@pytest.mark.looptime
async def test_without_valid_keys_a_request_is_told_that_the_provider_hangs() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now = 3_601.0
    chain.gate.clear()
    async with asyncio.timeout(2 * WAIT_SECONDS):
        with pytest.raises(CredentialRetrievalError, match=r"container: has not answered for 3 s, and no valid keys"):
            await credentials.get_frozen_credentials()
    await passes(chain, ANSWER_SECONDS)
    with pytest.raises(CredentialRetrievalError, match=r"container did not answer within 60 s"):
        await credentials.get_frozen_credentials()
    chain.gate.set()
    await passes(chain, PAUSE_MAX_SECONDS)
    await credentials.get_frozen_credentials()


@pytest.mark.looptime
async def test_a_start_does_not_wait_for_ever_and_names_who_was_asked() -> None:
    chain = Chain()
    chain.gate.clear()

    async def load() -> Any:
        credentials.asking("custom-process")
        return await chain.load()

    credentials = Credentials(load, lambda: chain.now)
    with pytest.raises(ProviderError, match=r"custom-process did not answer within 60 s"):
        await asyncio.wait_for(credentials.open(), 2 * ANSWER_SECONDS)


# --- keys that cannot be used ---

FLAWS = [
    ("tok\n", "the session token ends with a line break"),
    ("tok\r\nX-Evil: 1", "the session token has a line break in it"),
    ("tok ", "the session token ends with a blank"),
    ("t ok", "the session token has a blank in it"),
    ("tok\udcff", "the session token has a character in it that is no printable ASCII"),
    ("tok\x01", "the session token has a character in it that is no printable ASCII"),
    (5, "the session token is no text"),
]


@pytest.mark.parametrize(("token", "flaw"), FLAWS)
async def test_keys_that_no_header_may_hold_are_refused_at_the_start_and_not_shown(token: Any, flaw: str) -> None:
    chain = Chain()
    chain.token = token
    with pytest.raises(ProviderError, match=flaw) as caught:
        await opened(chain)
    assert "tok" not in str(caught.value).replace("token", "")


@pytest.mark.parametrize(
    ("keys", "flaw"),
    [
        (Keys("key\n"), "the access key id ends with a line break"),
        (Keys(""), "the access key id is empty"),
        (Keys("key", secret_key="s3cret\n"), "the secret access key ends with a line break"),
        (Keys("key", secret_key="s3cret\udcff"), "the secret access key has a character in it that cannot be encoded"),
        (Keys("key", secret_key=""), "the secret access key is empty"),
    ],
)
async def test_the_part_of_the_keys_that_is_wrong_is_named(keys: Keys, flaw: str) -> None:
    async def load() -> Any:
        return Static(keys)

    with pytest.raises(ProviderError, match=f"file gave keys that cannot be used: {flaw}") as caught:
        await Credentials(load).open()
    assert "s3cret" not in str(caught.value)


async def test_a_secret_may_be_any_text_of_one_line() -> None:
    async def load() -> Any:
        return Static(Keys("key", secret_key="a long påss phrase"))

    assert await Credentials(load).open()


@pytest.mark.parametrize("token", [flawed for flawed, _ in FLAWS])
@pytest.mark.parametrize("lasts_seconds", [None, 3_600.0])
async def test_a_renewal_that_brings_unusable_keys_has_failed_and_is_made_again(
    token: Any, lasts_seconds: float | None
) -> None:
    chain = Chain()
    chain.lasts_seconds = lasts_seconds
    credentials = await opened(chain)
    chain.now, chain.gives, chain.token = 3_600.0 - 100, "second", token
    credentials.distrust(credentials.latest())
    for _ in range(3):
        assert at_hand(credentials) == "first"
        await settled()
        chain.now += 2.0
    calls = chain.calls
    chain.now, chain.gives, chain.token = chain.now + 60, "third", None
    credentials.distrust(credentials.latest())
    at_hand(credentials)
    await settled()
    assert (at_hand(credentials), chain.calls) == ("third", calls + 1)


async def test_unusable_keys_never_lengthen_the_life_of_those_before() -> None:
    chain = Chain()
    credentials = await opened(chain)
    chain.now, chain.gives, chain.token = 3_600.0 - 100, "second", "tok\n"
    assert at_hand(credentials) == "first"
    await settled()
    assert at_hand(credentials) == "first"
    chain.now = 3_601.0
    assert at_hand(credentials) is None
    with pytest.raises(CredentialRetrievalError, match="the session token ends with a line break"):
        await key(credentials)
