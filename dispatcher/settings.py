"""All settings in one place: name, type, unit, default and the reason for it. Read by `cli` and `service` alone.

A setting has one name in three spellings: `max_in_flight` in TOML, `DISPATCHER_MAX_IN_FLIGHT` in the environment,
`--max-in-flight` as a flag; the later of these three wins. How AWS is reached (credentials, region, endpoints) is left
to the SDK's own chain and variables: a key never stands in a setting.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from dispatcher.errors import UsageError

PREFIX = "DISPATCHER_"

_STAGING = r"^s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/.*)?\Z"

EndpointText = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*\Z", max_length=63)]
HeaderText = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?\Z")]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a dispatcher is told. Sizes are bytes, times seconds."""

    endpoint: Annotated[EndpointText | None, Meta(description="Endpoint for job lines that name none.")] = None
    allow_endpoint: Annotated[
        tuple[EndpointText, ...],
        Meta(description="Further endpoints that a job line may name; a comma separates several in the environment."),
    ] = ()
    staging: Annotated[
        Annotated[str, Meta(pattern=_STAGING)] | None,
        Meta(description="s3://bucket/prefix for payloads that travel by S3. Without it everything must fit inline."),
    ] = None
    output: Annotated[
        str | None, Meta(description="Folder for results. Default: FILE.results beside the first job file.")
    ] = None
    ledger: Annotated[str | None, Meta(description="Path of the ledger. Default: ledger.db in the output folder.")] = (
        None
    )
    listen: Annotated[
        str | None,
        Meta(description="HOST:PORT for /metrics, /healthz and /readyz. `run` serves none unless it is set."),
    ] = None

    max_in_flight: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="Attempts on the wire at once, per endpoint. 64 keeps one core busy at usual latencies.",
        ),
    ] = 64
    max_faults: Annotated[
        int, Meta(ge=1, le=100, description="Refusals of one job, while its lane is in doubt, after which it is dead.")
    ] = 4
    attempt_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="Deadline of one request; an upload gets a second more for each megabyte."),
    ] = 10.0
    doubt_cap_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=21600,
            description="Longest wait for the output of an attempt whose answer was lost, before the next try.",
        ),
    ] = 60.0

    content_type: Annotated[HeaderText | None, Meta(description="ContentType for job lines that set none.")] = (
        "application/json"
    )
    accept: Annotated[HeaderText | None, Meta(description="Accept for job lines that set none.")] = None
    request_ttl_seconds: Annotated[
        int,
        Meta(ge=60, le=21600, description="RequestTTLSeconds for job lines that set none; the service's own default."),
    ] = 21600
    invocation_timeout_seconds: Annotated[
        int,
        Meta(
            ge=1,
            le=3600,
            description="InvocationTimeoutSeconds for job lines that set none; the service's own default.",
        ),
    ] = 900
    result_slack_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86400,
            description="Waited for a result beyond TTL and timeout, for uploads and clocks, before `expired`.",
        ),
    ] = 120.0

    comparison_share: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(
            description="Share of inline-eligible jobs that travel by S3 for a fair comparison. Default: 0.01 with staging, else 0.",
        ),
    ] = None
    staged_inputs: Annotated[
        Literal["delete", "keep", "lifecycle"],
        Meta(
            description="After a job's final state its staged input is deleted, kept, or left (tagged) to a lifecycle rule."
        ),
    ] = "delete"
    staging_kms_key: Annotated[str | None, Meta(description="KMS key for staged inputs (SSE-KMS).")] = None
    staging_tags: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^=,]+=[^,]*\Z")], ...],
        Meta(description="key=value tags on staged inputs."),
    ] = ()
    bucket_owner: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9]{12}\Z")] | None,
        Meta(description="Account that must own the staging bucket (ExpectedBucketOwner)."),
    ] = None
    input_prefix: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^s3://.+\Z")], ...],
        Meta(description="s3:// prefixes that a job's input_location may lie under. Default: any bucket."),
    ] = ()
    expect_continue: Annotated[
        bool,
        Meta(description="Send `Expect: 100-continue` with uploads: a round trip more, a refused upload costs less."),
    ] = False
    chosen_keys: Annotated[
        bool, Meta(description="Ask for output keys of our own choice, so that a lost answer's output can be found.")
    ] = True

    collect: Annotated[bool, Meta(description="Put the contents of outputs into results.jsonl.")] = False
    collect_max_bytes: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000_000,
            description="Largest output that is collected; a larger one keeps its location only.",
        ),
    ] = 6_000_000
    line_max_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1_000_000_000,
            description="Longest job line; a longer one is rejected without being held in memory.",
        ),
    ] = 16 * 1024 * 1024
    work_max_bytes: Annotated[
        int, Meta(ge=1, description="Disk budget for one uncompressed job file (compressed ones and stdin).")
    ] = 64 * 1024**3

    log_format: Annotated[
        Literal["json", "text"] | None, Meta(description="Default: text on a terminal, else json.")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level that is logged.")
    ] = "info"

    def share(self) -> float:
        """The comparison share in force."""
        if self.staging is None:
            return 0.0
        return 0.01 if self.comparison_share is None else self.comparison_share

    def endpoints(self) -> frozenset[str]:
        """Every endpoint that a job may be sent to."""
        return frozenset(self.allow_endpoint) | (frozenset([self.endpoint]) if self.endpoint else frozenset())


class Described(Struct, frozen=True):
    """A setting as help texts and the README show it."""

    name: str
    flag: str
    variable: str
    default: str
    description: str


def describe() -> list[Described]:
    """Every setting, in the order of the class."""
    return [
        Described(
            name=item.name,
            flag="--" + item.name.replace("_", "-"),
            variable=PREFIX + item.name.upper(),
            default=_shown(item.default),
            description=_description(item.name),
        )
        for item in msgspec.structs.fields(Settings)
    ]


def settings_table() -> str:
    """The settings as the README's Markdown table."""
    rows = [f"| `{s.name}` | `{s.flag}` | `{s.variable}` | {s.default} | {s.description} |" for s in describe()]
    return "\n".join(["| setting | flag | variable | default | meaning |", "| --- | --- | --- | --- | --- |", *rows])


def load(flags: Mapping[str, Any], environ: Mapping[str, str], toml: Mapping[str, Any] | None = None) -> Settings:
    """Settings from their three places. Every problem is named in one UsageError. `flags` of None were not given."""
    known = {item.name for item in msgspec.structs.fields(Settings)}
    values: dict[str, tuple[str, Any]] = {}
    problems = [f"unknown setting {name!r} in the settings file" for name in (toml or {}) if name not in known]
    problems += [
        f"unknown variable {name}"
        for name in environ
        if name.startswith(PREFIX) and name[len(PREFIX) :].lower() not in known
    ]
    for name in known:
        variable = PREFIX + name.upper()
        if toml and name in toml:
            values[name] = (f"{name} in the settings file", toml[name])
        if environ.get(variable):
            values[name] = (variable, _split(name, environ[variable]))
        if flags.get(name) not in (None, ()):
            values[name] = ("--" + name.replace("_", "-"), flags[name])
    settings = {}
    for name, (where, value) in values.items():
        try:
            settings[name] = _convert(name, value)
        except msgspec.ValidationError as error:
            problems.append(f"{where}: {_reason(error)} (given: {value!r}). {_description(name)}")
    if problems:
        raise UsageError("Settings cannot be used:\n" + "\n".join(f"  - {problem}" for problem in sorted(problems)))
    return Settings(**settings)


def _convert(name: str, value: Any) -> Any:
    one = msgspec.convert({name: value}, Settings, strict=False)
    return getattr(one, name)


def _split(name: str, text: str) -> Any:
    """Environment variables are text; where several values are meant, commas separate them."""
    several = isinstance(getattr(Settings(), name), tuple)
    return [part.strip() for part in text.split(",") if part.strip()] if several else text


def _reason(error: msgspec.ValidationError) -> str:
    text = str(error).partition(" - at ")[0]
    return "it has not the form of one" if "matching regex" in text else text[:1].lower() + text[1:]


def _description(name: str) -> str:
    annotation = Settings.__annotations__[name]
    return next(m.description for m in annotation.__metadata__ if isinstance(m, Meta) and m.description)


def _shown(default: Any) -> str:
    if default is None or default is field or default == ():
        return "–"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default}`"
