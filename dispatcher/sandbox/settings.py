"""What a sandbox is told to be: frozen, from a dict or a JSON file; keys that are not known are refused.

Everything but `FIXED` may be changed while it runs. Seconds are real ones, except that the two limits which a request
brings with it (RequestTTLSeconds and InvocationTimeoutSeconds) are multiplied by `time_scale`.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

from dispatcher.errors import UsageError


class Operation(StrEnum):
    """What is asked of the sandbox, as faults and counts name it."""

    INVOKE = "invoke"
    PUT = "put"
    GET = "get"
    HEAD = "head"
    LIST = "list"
    DELETE = "delete"
    BUCKET = "bucket"
    DESCRIBE = "describe"
    IDENTITY = "identity"
    CONTROL = "control"
    UNKNOWN = "unknown"


class FaultKind(StrEnum):
    """A way to answer otherwise than well. "before": nothing is accepted; "after": it is, and the client is not told so."""

    THROTTLE = "throttle"
    INTERNAL_FAILURE = "internal_failure"
    UNAVAILABLE = "unavailable"
    VALIDATION = "validation"
    ACCESS_DENIED = "access_denied"
    EXPIRED_TOKEN = "expired_token"  # noqa: S105 - the name of an error
    RESET_BEFORE = "reset_before"
    RESET_AFTER = "reset_after"
    RESET_MIDWAY = "reset_midway"
    HANG_BEFORE = "hang_before"
    HANG_AFTER = "hang_after"
    SLOW = "slow"
    BARE_202 = "bare_202"
    WRONG_ID = "wrong_id"
    NO_CONTINUE = "no_continue"


class FaultRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault for requests of one operation ("any": of every one but control).

    The first `skip` requests pass; of the rest each is hit with probability `rate`, `count` of them at most.
    `retry_after_ms` adds the header `x-amz-retry-after`; `seconds` is how slow SLOW is; `message` replaces the text.
    """

    operation: Literal["any", "invoke", "put", "get", "head", "list", "delete", "bucket", "describe", "identity"]
    kind: FaultKind
    rate: float = 1.0
    count: int | None = None
    skip: int = 0
    seconds: float = 0.0
    retry_after_ms: int | None = None
    message: str | None = None


class RateLimit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token bucket: what comes faster is throttled."""

    per_second: float
    burst: float = 1.0
    retry_after_ms: int | None = None


class EndpointSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint, its model and what goes wrong behind the 202. `…_every: n` means each n-th inference; 0 is never.

    `wake_backlog` is how many jobs wake an endpoint that starts asleep, `wake_seconds` later; None: it never wakes.
    `delay_every` results appear `delay_seconds` after their inference ended. `status` and `asynchronous` are what
    DescribeEndpoint says of it, and change nothing else.
    """

    output_path: str = "s3://sandbox-out/results"
    failure_path: str | None = "s3://sandbox-out/failures"
    output_layout: Literal["joined", "flat"] = "joined"
    location_scheme: Literal["s3", "https"] = "s3"
    inline: bool = True
    model: Literal["echo", "digest"] = "echo"
    min_seconds: float = 0.0
    max_seconds: float = 0.0
    instances: int = 1
    concurrency_per_instance: int = 4
    asleep: bool = False
    wake_backlog: int | None = 1
    wake_seconds: float = 0.0
    fail_every: int = 0
    lose_every: int = 0
    delay_every: int = 0
    delay_seconds: float = 0.0
    failure_on_expiry: bool = False
    failure_on_timeout: bool = False
    status: str = "InService"
    asynchronous: bool = True


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sandbox. `port` 0 takes a free one; `record` is the path of the record (None: none is kept).

    `s3_url` names an S3 that is not the sandbox's: inputs are read from there and results written there, with the same keys.
    `clock_offset_seconds` is how far its clock is ahead; `bucket_regions` are those of buckets that are not in `region`;
    keys of `expired_key_ids` are refused as keys whose time is up.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls_certificate: str | None = None
    tls_key: str | None = None
    record: str | None = None
    work_dir: str | None = None
    access_key_id: str = "sandbox"
    secret_access_key: str = "sandbox-secret"  # noqa: S105 - opens nothing but a sandbox
    expired_key_ids: tuple[str, ...] = ()
    account: str = "000000000000"
    region: str = "us-east-1"
    verify_signatures: bool = True
    time_scale: float = 1.0
    seed: int = 0
    buckets: tuple[str, ...] = ("sandbox-in", "sandbox-out")
    s3_url: str | None = None
    bucket_regions: dict[str, str] = {}
    clock_offset_seconds: float = 0.0
    list_denied: bool = False
    endpoints: dict[str, EndpointSettings] = msgspec.field(default_factory=lambda: {"sandbox": EndpointSettings()})
    faults: tuple[FaultRule, ...] = ()
    rate_limits: dict[Operation, RateLimit] = {}


FIXED = ("host", "port", "tls_certificate", "tls_key", "record", "work_dir", "seed", "s3_url")


def load(source: Mapping[str, Any] | str | Path) -> Settings:
    """Settings from a dict, a JSON text (it begins with a brace) or the path of a JSON file; UsageError says what is wrong."""
    if isinstance(source, Mapping):
        return _convert(source)
    text = str(source)
    try:
        raw = text if text.lstrip().startswith("{") else Path(text).read_text("utf-8")
        return _convert(msgspec.json.decode(raw))
    except OSError as error:
        raise UsageError(f"sandbox settings: cannot read {text}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"sandbox settings: not JSON: {error}") from error


def patched(settings: Settings, patch: Mapping[str, Any]) -> Settings:
    """`settings` with `patch` merged in: objects key by key, all else replaced.

    An endpoint or a rate limit that is set to null goes away.
    """
    fixed = [key for key in FIXED if key in patch]
    if fixed:
        raise UsageError(f"sandbox settings: {', '.join(fixed)} cannot change while it runs")
    return _convert(_merged(as_dict(settings), patch))


def as_dict(settings: Settings) -> dict[str, Any]:
    """The settings as plain JSON values."""
    return cast(dict[str, Any], msgspec.to_builtins(settings))


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    merged = {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    for key in merged.keys() & {"endpoints", "rate_limits"}:
        if isinstance(merged[key], Mapping):
            merged[key] = {name: value for name, value in merged[key].items() if value is not None}
    return merged


def _convert(raw: Any) -> Settings:
    try:
        return msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(f"sandbox settings: {error}") from error
