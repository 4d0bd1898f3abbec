"""All settings in one place: name, type, unit, default and the reason for it. Read by `cli` and `service` alone.

A setting has one name in three spellings: `max_in_flight` in TOML, `DISPATCHER_MAX_IN_FLIGHT` in the environment,
`--max-in-flight` as a flag; the later of these three wins. How AWS is reached (credentials, region, endpoints) is left
to the SDK's own chain and variables: a key never stands in a setting.

Over 300 lines because each setting says beside its default what it counts in and why the default is what it is; README,
help texts, the sample in `deploy/` and the JSON Schema are all printed from here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, field

from dispatcher.errors import UsageError

PREFIX = "DISPATCHER_"
_IN_FILE = " in the settings file"

END = r"$(?!\n)"
"""The end of a text in patterns, which Python and, by the JSON Schema, ECMAScript must read alike: that has no `\\Z`, and
Python's `$` also stands before a last newline. For the same reason no pattern has a dot: the two differ in what it leaves out."""

_PORT = r"0*(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5]?[0-9]{1,4})"
_LISTEN = rf"^(?:[^:\[\]]+|\[[^\[\]]+\]):{_PORT}" + END
_STAGING = r"^s3://[a-z0-9][a-z0-9.-]+[a-z0-9](?:/[^\n]*)?" + END

OF_KUBERNETES = re.compile(
    PREFIX
    + r"""(?:[A-Z0-9]+_)*?(?:
        SERVICE_HOST=[0-9a-f.:]+ | SERVICE_PORT(?:_[A-Z0-9_]+)?=[0-9]+
        | PORT(?:_[0-9]+_(?:TCP|UDP|SCTP))?=(?:tcp|udp|sctp)://.+
        | PORT_[0-9]+_(?:TCP|UDP|SCTP)_(?:PROTO=(?:tcp|udp|sctp) | PORT=[0-9]+ | ADDR=[0-9a-f.:]+))""",
    re.VERBOSE,
)
"""Variables that Kubernetes gives every container beside a Service whose name is, or begins with, `dispatcher`."""

_HEADER = "visible ASCII characters and, between them, spaces"
_FORMS = {
    "endpoint": "letters, digits and, between them, hyphens",
    "allow_endpoint": "letters, digits and, between them, hyphens",
    "staging": "s3://BUCKET or s3://BUCKET/PREFIX, with a bucket of lowercase letters, digits, dots and hyphens",
    "listen": "HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464",
    "content_type": _HEADER,
    "accept": _HEADER,
    "staging_tags": "KEY=VALUE without a comma",
    "bucket_owner": "the 12 digits of an account",
    "input_prefix": "s3://BUCKET/PREFIX",
}
"""What a pattern asks for, in words."""
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}

EndpointText = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9](?:-*[a-zA-Z0-9])*" + END, max_length=63)]
HeaderText = Annotated[
    str, Meta(min_length=1, max_length=1024, pattern=r"^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?" + END)
]


def _about(unit: str, reason: str) -> dict[str, str]:
    """What a setting counts in, and why its default is what it is."""
    return {"unit": unit, "reason": reason}


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a dispatcher is told. Sizes are bytes, times seconds."""

    endpoint: Annotated[
        EndpointText | None,
        Meta(
            description="Endpoint for job lines that name none.",
            extra=_about("name", "there is no endpoint that fits everybody"),
            examples=["my-endpoint"],
        ),
    ] = None
    allow_endpoint: Annotated[
        tuple[EndpointText, ...],
        Meta(
            description="Further endpoints that a job line may name; a comma separates several in the environment.",
            extra=_about("names", "a job file shall not reach an endpoint that nobody meant it to"),
            examples=[["other-endpoint"]],
        ),
    ] = ()
    staging: Annotated[
        Annotated[str, Meta(pattern=_STAGING)] | None,
        Meta(
            description="s3://bucket/prefix for payloads that travel by S3. Without it everything must fit inline.",
            extra=_about("s3:// URI", "inline needs no bucket; only you know where payloads may lie"),
            examples=["s3://my-bucket/staging"],
        ),
    ] = None
    output: Annotated[
        str | None,
        Meta(
            description="Folder for results. Default: FILE.results beside the first job file.",
            extra=_about("path", "results belong beside what they came from; the service has them in the spool"),
            examples=["results"],
        ),
    ] = None
    ledger: Annotated[
        str | None,
        Meta(
            description="Path of the ledger. Default: ledger.db in the output folder.",
            extra=_about("path", "one folder then holds all that a run needs to resume; it must be a local disk"),
            examples=["/var/lib/dispatcher/ledger.db"],
        ),
    ] = None
    spool: Annotated[
        str | None,
        Meta(
            description="Folder that holds inbox, work, done, failed and results of the service.",
            extra=_about("path", "the service alone has one"),
            examples=["/var/lib/dispatcher"],
        ),
    ] = None
    listen: Annotated[
        Annotated[str, Meta(pattern=_LISTEN)] | None,
        Meta(
            description="HOST:PORT for /metrics, /healthz and /readyz. `run` serves none unless it is set.",
            extra=_about("host:port", "metrics have no password, so nothing listens unasked"),
            examples=["127.0.0.1:9464"],
        ),
    ] = None

    max_in_flight: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="Attempts on the wire at once, per endpoint. With 64, answers that take 30 ms are 2,000 jobs a second.",
            extra=_about(
                "requests",
                "64 at 30 ms each are 2,000 a second; after a crash up to twice as many attempts are in doubt",
            ),
        ),
    ] = 64
    min_in_flight: Annotated[
        float,
        Meta(
            ge=0.001,
            le=4096.0,
            description="The window in flight never shrinks below this, however much is throttled.",
            extra=_about("requests", "no limit but the window's own: a request a second, or in twenty round trips"),
        ),
    ] = 0.001
    max_outstanding: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Most jobs submitted and not settled, per endpoint. Default: what the model gets done within the TTL.",
            extra=_about(
                "jobs", "what waits longer than its TTL is lost, and only the model's own rate tells how much that is"
            ),
            examples=[100000],
        ),
    ] = None
    requests_per_second: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="Most InvokeEndpointAsync requests a second, per endpoint. Default: no limit of our own.",
            extra=_about("requests/s", "the service publishes no quota; throttling finds it"),
            examples=[500.0],
        ),
    ] = None
    bytes_per_second: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="Most payload bytes a second, per endpoint. Default: no limit of our own.",
            extra=_about("bytes/s", "a limit is for sharing a thin line with others"),
            examples=[50000000.0],
        ),
    ] = None
    max_faults: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Refusals of one job, while its lane is in doubt, after which it is dead.",
            extra=_about("refusals", "a bad job shows at once, while a lane in doubt may refuse good jobs a few times"),
        ),
    ] = 4
    attempt_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="Deadline of one request; an upload gets a second more for each megabyte.",
            extra=_about(
                "seconds", "a good answer takes below one; after ten it is quicker to find out and to try again"
            ),
        ),
    ] = 10.0
    doubt_cap_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=21600,
            description="Longest wait for the output of an attempt whose answer was lost, before the next try.",
            extra=_about(
                "seconds", "most models are done by then, and a second inference costs more than a minute's wait"
            ),
        ),
    ] = 60.0

    content_type: Annotated[
        HeaderText | None,
        Meta(
            description="ContentType for job lines that set none.",
            extra=_about("media type", "a payload that stands in a job line is JSON"),
        ),
    ] = "application/json"
    accept: Annotated[
        HeaderText | None,
        Meta(
            description="Accept for job lines that set none.",
            extra=_about("media type", "the model's own default is right for most"),
            examples=["application/json"],
        ),
    ] = None
    request_ttl_seconds: Annotated[
        int,
        Meta(
            ge=60,
            le=21600,
            description="RequestTTLSeconds for job lines that set none; the service's own default.",
            extra=_about(
                "seconds", "the longest that the service allows: a scale from zero or a backlog may take hours"
            ),
        ),
    ] = 21600
    invocation_timeout_seconds: Annotated[
        int,
        Meta(
            ge=1,
            le=3600,
            description="InvocationTimeoutSeconds for job lines that set none; the service's own default.",
            extra=_about("seconds", "what the service takes where none is given; up to 3600 for slow models"),
        ),
    ] = 900
    result_slack_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86400,
            description="Waited for a result beyond TTL and timeout, for uploads and clocks, before `expired`.",
            extra=_about(
                "seconds", "an output appears some seconds after the model is done, and clocks differ a little"
            ),
        ),
    ] = 120.0

    comparison_share: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(
            description="Share of inline-eligible jobs that travel by S3 for a fair comparison. Default: 0.01 with staging, else 0.",
            extra=_about("share of 1", "one in a hundred makes a fair comparison and costs next to nothing"),
            examples=[0.01],
        ),
    ] = None
    staged_inputs: Annotated[
        Literal["delete", "keep", "lifecycle"],
        Meta(
            description="After a job's final state its staged input is deleted, kept, or left (tagged) to a lifecycle rule.",
            extra=_about("choice", "a staged input is of no use after its job's end, and storage costs"),
        ),
    ] = "delete"
    staging_kms_key: Annotated[
        str | None,
        Meta(
            description="KMS key for staged inputs (SSE-KMS).",
            extra=_about("key id or ARN", "the bucket's own encryption is used"),
            examples=["alias/my-key"],
        ),
    ] = None
    staging_tags: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^=,]+=[^,]*" + END)], ...],
        Meta(
            description="key=value tags on staged inputs.",
            extra=_about("key=value", "only your rules know tags"),
            examples=[["team=research"]],
        ),
    ] = ()
    bucket_owner: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9]{12}" + END)] | None,
        Meta(
            description="Account that must own the staging bucket (ExpectedBucketOwner).",
            extra=_about("account id", "only you know it; set it, and a bucket of somebody else's is refused"),
            examples=["123456789012"],
        ),
    ] = None
    input_prefix: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^s3://[^\n]+" + END)], ...],
        Meta(
            description="s3:// prefixes that a job's input_location may lie under. Default: any bucket.",
            extra=_about("s3:// URIs", "the endpoint's role decides what may be read; this narrows it further"),
            examples=[["s3://my-bucket/inputs"]],
        ),
    ] = ()
    expect_continue: Annotated[
        bool,
        Meta(
            description="Send `Expect: 100-continue` with uploads: a round trip more, a refused upload costs less.",
            extra=_about("switch", "without it a PutObject took 43 ms instead of 84 at a round trip of 40 ms"),
        ),
    ] = False
    client: Annotated[
        Literal["lean", "sdk"],
        Meta(
            description="What sends InvokeEndpointAsync and PutObject: a lean client that makes the SDK's own requests, or the SDK.",
            extra=_about(
                "choice",
                "the same requests at a fraction of the cost; where it cannot make them, the SDK sends and the log says why",
            ),
        ),
    ] = "lean"
    chosen_keys: Annotated[
        bool,
        Meta(
            description="Ask for output keys of our own choice, so that a lost answer's output can be found.",
            extra=_about(
                "switch",
                "it is what keeps a lost answer from becoming a second result; off only where a policy forbids the keys",
            ),
        ),
    ] = True

    collect: Annotated[
        bool,
        Meta(
            description="Put the contents of outputs into results.jsonl.",
            extra=_about("switch", "outputs may be large and are in S3 anyway; each costs a GET"),
        ),
    ] = False
    collect_max_bytes: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000_000,
            description="Largest output that is collected; a larger one keeps its location only.",
            extra=_about("bytes", "a line of results stays one that ordinary tools can read"),
        ),
    ] = 6_000_000
    payload_root: Annotated[
        str | None,
        Meta(
            description="Folder that payload_path is relative to in the service. Default: the inbox.",
            extra=_about("path", "whoever may write job files to the inbox may put payloads there too"),
            examples=["/data/payloads"],
        ),
    ] = None
    settle_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="A file in the inbox is taken when its size and time stood still for so long.",
            extra=_about(
                "seconds",
                "a copy that stalls writes again within it as a rule; with 0, only files that are renamed in may come",
            ),
        ),
    ] = 2.0
    scan_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="The inbox is scanned this often; file events only make it sooner.",
            extra=_about(
                "seconds", "file events bring most files at once; where there are none, five seconds are soon enough"
            ),
        ),
    ] = 5.0
    file_deadline_seconds: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="What is not submitted so long after the service took its job file up expires. Default: never.",
            extra=_about("seconds", "late results are better than none, unless you say otherwise"),
            examples=[86400.0],
        ),
    ] = None
    retention_seconds: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="Ledger rows, done/ and results/ of a job file are kept so long after it is published. Default: for ever.",
            extra=_about("seconds", "nothing is deleted unasked; set it, or the disk fills up"),
            examples=[2592000.0],
        ),
    ] = None
    disk_reserve_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Intake stops if less than this is free on the spool's disk, until a tenth more is; what was accepted goes on.",
            extra=_about("bytes", "room for the ledger and the results of what was accepted"),
        ),
    ] = 1024**3
    drain_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long a stop waits for what is on the wire: less than the orchestrator's grace.",
            extra=_about("seconds", "Kubernetes gives 30 before it kills, and five are for the last writes"),
        ),
    ] = 25.0
    line_max_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1_000_000_000,
            description="Longest job line; a longer one is rejected without being held in memory.",
            extra=_about(
                "bytes", "a line that is longer is a broken file as a rule; large payloads belong into payload_path"
            ),
        ),
    ] = 16 * 1024 * 1024
    work_max_bytes: Annotated[
        int,
        Meta(
            ge=1,
            description="Disk budget for one uncompressed job file (compressed ones and stdin).",
            extra=_about("bytes", "a small archive can hold far more than the disk"),
        ),
    ] = 64 * 1024**3

    log_format: Annotated[
        Literal["json", "text"] | None,
        Meta(
            description="Default: text on a terminal, else json.",
            extra=_about("choice", "people read text, collectors read JSON"),
            examples=["json"],
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(
            description="Least level that is logged.",
            extra=_about("choice", "a line for each event of a lane or a job file, none for each job"),
        ),
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
    unit: str
    reason: str
    example: Any
    """A value for who has to give one; None where the default is a value."""


def describe() -> list[Described]:
    """Every setting, in the order of the class."""
    return [
        Described(
            name=item.name,
            flag="--" + item.name.replace("_", "-"),
            variable=PREFIX + item.name.upper(),
            default=_shown(item.default),
            description=_meta(item.name).description or "",
            **(_meta(item.name).extra or {}),
            example=next(iter(_meta(item.name).examples or ()), None),
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
        for name, value in environ.items()
        if name.startswith(PREFIX) and name[len(PREFIX) :].lower() not in known
        if not OF_KUBERNETES.fullmatch(f"{name}={value}")
    ]
    for name in known:
        variable = PREFIX + name.upper()
        if toml and name in toml:
            values[name] = (name + _IN_FILE, toml[name])
        if environ.get(variable):
            values[name] = (variable, _split(name, environ[variable]))
        if flags.get(name) not in (None, ()):
            values[name] = ("--" + name.replace("_", "-"), flags[name])
    settings = {}
    for name, (where, value) in values.items():
        try:
            settings[name] = _convert(name, value, is_text=not where.endswith(_IN_FILE))
        except msgspec.ValidationError as error:
            problems.append(f"{where}: {_reason(name, error)} (given: {value!r}). {_meta(name).description}")
    made = Settings(**settings)
    if not {"min_in_flight", "max_in_flight"} & (values.keys() - settings.keys()):
        problems += _apart(made)
    if problems:
        raise UsageError("Settings cannot be used:\n" + "\n".join(f"  - {problem}" for problem in sorted(problems)))
    return made


def _apart(settings: Settings) -> list[str]:
    """What is wrong with settings that are good each by itself."""
    if settings.min_in_flight <= settings.max_in_flight:
        return []
    return [f"min_in_flight, {settings.min_in_flight:g}, is above max_in_flight, {settings.max_in_flight}: lower it"]


def _convert(name: str, value: Any, *, is_text: bool) -> Any:
    """Flags and variables are text, whatever is meant; TOML says itself what is a number, and `2.0` is a whole one."""
    is_whole = isinstance(value, float) and value.is_integer()
    one = msgspec.convert({name: value}, Settings, strict=not (is_text or is_whole))
    return getattr(one, name)


def _split(name: str, text: str) -> Any:
    """Environment variables are text; where several values are meant, commas separate them."""
    several = isinstance(getattr(Settings(), name), tuple)
    return [part.strip() for part in text.split(",") if part.strip()] if several else text


def _reason(name: str, error: msgspec.ValidationError) -> str:
    """What is wrong, in words that need no knowledge of Python."""
    text = str(error).partition(" - at ")[0]
    if "matching regex" in text:
        return f"it must be {_FORMS[name]}"
    if text.startswith("Invalid enum value"):
        return f"it must be one of {', '.join(_choices(Settings.__annotations__[name]))}"
    return re.sub(r"`([a-z |]+)`", _in_words, text[:1].lower() + text[1:])


def _in_words(types: re.Match[str]) -> str:
    """`null` goes without saying: it is what is not given."""
    return " or ".join(_WORDS.get(kind, kind) for kind in types[1].split(" | ") if kind != "null" or types[1] == "null")


def _choices(annotation: Any) -> Iterator[str]:
    """The values that its Literal allows."""
    for part in get_args(annotation):
        if get_origin(annotation) is Literal:
            yield str(part)
        elif get_origin(part) is not None:
            yield from _choices(part)


def _meta(name: str) -> Meta:
    """What the class says of the setting itself; the Meta of a type within has no description."""
    annotation = Settings.__annotations__[name]
    return next(meta for meta in annotation.__metadata__ if isinstance(meta, Meta) and meta.description)


def _shown(default: Any) -> str:
    if default is None or default is field or default == ():
        return "–"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default}`"
