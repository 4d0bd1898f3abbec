"""The keys that requests are signed with, renewed beside the requests: nobody waits for a provider while there are valid keys.

The SDK's own way lets requests wait in a queue for the provider from ten minutes before the end, fails them where it is away
then, and reads static keys once. Here the first request that finds the end near begins a renewal, one at a time, and is signed
with the keys at hand; only without valid keys it waits. A renewal that brought nothing new is made again after a pause that
doubles. Keys that the service refuses, whatever was said of their end, are looked for in the whole chain again: in files, in
the environment's endpoint, by the process. A refusal counts against the keys that its request began with, so those that come
late say nothing of newer keys. What is valid is what the SDK says by this machine's clock.

A provider that does not answer in time is given up and has failed. Keys that no header may hold are as good as none: what
cannot be signed with never replaces what can.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any

import structlog
from botocore.exceptions import CredentialRetrievalError
from msgspec import Struct

from dispatcher.aws.codes import CODES
from dispatcher.aws.faults import clean
from dispatcher.aws.signing import Keys
from dispatcher.model import FailureReason

log = structlog.get_logger(__name__)

EARLY_SECONDS = 900
"""So long before their end keys are renewed: the SDK's own measure, which providers know."""
PAUSE_SECONDS = 1.0
PAUSE_MAX_SECONDS = 30.0
"""Between renewals that bring nothing new; no longer than between two probes of a lane that waits for keys."""
ANSWER_SECONDS = 60.0
"""How long the providers may take, with all their retries: those of the SDK need seconds, and AWS's command line gives a
service as long for one answer. What takes longer hangs, and would hold up every later renewal."""
WAIT_SECONDS = 3.0
"""How long a call without valid keys waits for a renewal that is on: then it says what it waits for, and its lane waits instead."""
_BEGAN_WITH = "dispatcher.keys"
"""Where a call of the SDK's keeps, in its context, the keys that it began with."""

LOOK_SECONDS = 1.0
"""How long keys that were found valid are taken to be so: whether they are costs as much as a signature."""

Load = Callable[[], Awaitable[Any]]
"""Asks the SDK's chain from its beginning: its credentials, or None. Raises whatever a provider raises."""


class ProviderError(CredentialRetrievalError):  # type: ignore[misc]  # the SDK has no types
    """A provider that gives no answer in time, or keys that cannot be used."""

    fmt = "{provider} {error_msg}"


class Held(Struct, frozen=True):
    """Credentials as the SDK made them, and the keys they had when they were last asked."""

    made: Any
    keys: Any

    def lasts(self, seconds: float) -> bool:
        """Whether they are valid for so long; keys without an end are."""
        refresh_needed = getattr(self.made, "refresh_needed", None)
        return refresh_needed is None or not refresh_needed(seconds)


class Credentials:
    """Stands where the SDK expects its credentials, and has keys at hand for who signs without it. `open` first; `aclose` ends a
    renewal that is on.
    """

    def __init__(
        self, load: Load, monotonic: Callable[[], float] = time.monotonic, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._load = load
        self._answer_seconds = answer_seconds
        self._monotonic = monotonic
        self._held: Held | None = None
        # The renewal that is on, or the last one.
        self._renewal: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._pause_seconds = 0.0
        # The service refused the keys since they were made. Set by `refused`, cleared by a renewal.
        self._refused = False
        # Why the latest renewal failed; empty after one that did not.
        self._trouble = ""
        # The provider of the chain that was asked last.
        self._asked = ""
        # The keys of `_held`: one object as long as they are the same. And until when they are taken to be valid.
        self._keys = Keys("", "", None)
        self._valid_until = float("-inf")

    async def open(self) -> bool:
        """Asks the chain for the first time; whether it has credentials. Raises what providers raise, and ProviderError."""
        held = await self._ask(None)
        if held is not None:
            self._held = held
            self._valid_until = float("-inf")
        return held is not None

    async def aclose(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])

    def asking(self, method: str) -> None:
        """Is told by `load` which provider of the chain is asked now."""
        self._asked = method

    @property
    def method(self) -> str:
        """Where they come from, in the SDK's words."""
        return str(getattr(self._held and self._held.made, "method", ""))

    def current(self) -> Keys | None:
        """Keys to sign with, at hand; None where they have to be waited for. May begin a renewal; does not wait for it."""
        if self._monotonic() >= self._valid_until:
            self._look()
        return self._keys if self._valid_until > float("-inf") else None

    def latest(self) -> Keys:
        """The keys that are valid, or were: for a request that is about to leave."""
        self.current()
        return self._keys

    def _look(self) -> None:
        self._begin_if_due()
        held = self._valid()
        self._valid_until = float("-inf") if held is None else self._monotonic() + LOOK_SECONDS
        if held is not None:
            keys = Keys(held.keys.access_key, held.keys.secret_key, held.keys.token)
            self._keys = self._keys if keys == self._keys else keys

    async def get_frozen_credentials(self) -> Any:
        """Keys to sign with. CredentialRetrievalError where there are none that are valid."""
        self._begin_if_due()
        if self._valid() is None and self._renewal is not None:
            # The renewal goes on for the next call.
            await asyncio.wait((self._renewal,), timeout=WAIT_SECONDS)
        valid = self._valid()
        if valid is None:
            raise CredentialRetrievalError(provider=self._asked or self.method, error_msg=self._why_none())
        return valid.keys

    def _why_none(self) -> str:
        if self._trouble or self._renewal is None or self._renewal.done():
            return self._trouble or "they have expired"
        return f"has not answered for {WAIT_SECONDS:g} s, and no valid keys are at hand"

    async def get_account_id(self) -> Any:
        """The account, where the provider names it."""
        return None if self._held is None else self._held.keys.account_id

    def get_deferred_property(self, name: str) -> Callable[[], Awaitable[Any]]:
        """What the SDK asks for while it makes a client; it names the account alone."""
        assert name == "account_id"
        return self.get_account_id

    def began(self, context: dict[str, Any], **_: Any) -> None:
        """Takes note of a call (the SDK's `before-call`), for `refused`."""
        context[_BEGAN_WITH] = self.latest()

    def refused(self, parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        """Takes note of an answer (the SDK's `after-call`) that says the keys are no good."""
        meaning = CODES.get(str(parsed.get("Error", {}).get("Code")))
        if meaning is not None and meaning.reason is FailureReason.CREDENTIALS:
            self.distrust(context[_BEGAN_WITH])

    def distrust(self, keys: Keys) -> None:
        """The service refused a request that began when these were the latest keys."""
        if keys is self.latest():
            self._refused = True
            self._valid_until = float("-inf")

    def _valid(self) -> Held | None:
        return self._held if self._held is not None and self._held.lasts(0) else None

    def _begin_if_due(self) -> None:
        if self._is_due():
            self._renewal = asyncio.create_task(self._renew())

    def _is_due(self) -> bool:
        if self._renewal is not None and not self._renewal.done():
            return False
        if self._held is not None and self._held.lasts(EARLY_SECONDS) and not self._refused:
            return False
        return self._monotonic() >= self._not_before

    async def _renew(self) -> None:
        refused, self._refused = self._refused, False
        before = self._held
        try:
            self._held = await self._renewed(before, refused)
        except Exception as error:  # whatever a provider raises: requests are told of it while there are no valid keys
            self._fail(error)
        else:
            self._trouble = ""
        self._valid_until = float("-inf")
        news = before is None or self._held is None or before.keys != self._held.keys
        # What was refused while the renewal was on were the keys before.
        self._refused = self._refused and not news
        self._put_off(news=news)

    async def _renewed(self, held: Held | None, refused: bool) -> Held:
        # A copy is asked: what is held stays as it is, with its own end, if what comes cannot be used.
        renewed = await self._ask(None if held is None or refused else copy(held.made))
        if renewed is None:
            raise CredentialRetrievalError(provider=self.method, error_msg="there are none any more")
        return renewed

    async def _ask(self, made: Any) -> Held | None:
        """The keys that `made` has now; without it those of the chain, None where it has none."""
        self._asked = str(getattr(made, "method", ""))
        try:
            async with asyncio.timeout(self._answer_seconds) as limit:
                if made is None:
                    made = await self._load()
                keys = None if made is None else await made.get_frozen_credentials()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ProviderError(
                provider=self._asked or "the provider", error_msg=f"did not answer within {self._answer_seconds:g} s"
            ) from error
        if made is None:
            return None
        _check(keys, str(getattr(made, "method", "")))
        return Held(made, keys)

    def _put_off(self, *, news: bool) -> None:
        """Keys that were refused as soon as they came are not asked for at once either."""
        longer = min(max(2 * self._pause_seconds, PAUSE_SECONDS), PAUSE_MAX_SECONDS)
        self._pause_seconds = PAUSE_SECONDS if news else longer
        self._not_before = self._monotonic() + self._pause_seconds
        if news:
            log.info("credentials renewed", method=self.method)

    def _fail(self, error: Exception) -> None:
        text = clean(f"{type(error).__name__}: {error}")
        if not self._trouble:
            log.warning("credentials cannot be renewed; tried again", method=self.method, error=text)
        self._trouble = text


# --- what may be written into a header -------------------------------------------------------------------------------


def _check(keys: Any, method: str) -> None:
    """ProviderError for keys that no header may hold, or that nothing can be signed with. Shows nothing of them."""
    flaws = {
        "the access key id": _flaw(keys.access_key) if keys.access_key else "is empty",
        "the secret access key": _secret_flaw(keys.secret_key),
        "the session token": _flaw(keys.token) if keys.token else "",
    }
    for part, flaw in flaws.items():
        if flaw:
            raise ProviderError(provider=method, error_msg=f"gave keys that cannot be used: {part} {flaw}")


def _flaw(value: Any) -> str:
    """Why it cannot stand in a header as it is; a line break in it would begin another header. Empty: it can."""
    if not isinstance(value, str):
        return "is no text"
    if value != value.rstrip():
        return "ends with a line break" if value[-1] in "\r\n" else "ends with a blank"
    if "\r" in value or "\n" in value:
        return "has a line break in it"
    if any(character.isspace() for character in value):
        return "has a blank in it"
    return "" if value.isascii() and value.isprintable() else "has a character in it that is no printable ASCII"


def _secret_flaw(value: Any) -> str:
    """It is in no header. A service that is not AWS may let its users choose it, but nobody chooses a line break."""
    if not value:
        return "is empty"
    flaw = _flaw(value)
    if flaw and isinstance(value, str) and "line break" not in flaw:
        return "" if _encodable(value) else "has a character in it that cannot be encoded"
    return flaw


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
