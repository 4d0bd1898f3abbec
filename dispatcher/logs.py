"""Where log lines go and what may stand in them: one chain for our own loggers and for those of libraries.

The laws of this file:
  * No payload, attribute or credential in a line. Keys that could hold one are dropped, last of all before the line is
    written; objects are named, not shown; tracebacks come without locals; the loggers of the AWS and HTTP libraries,
    which print requests at DEBUG, stay at WARNING whatever the level of the program.
  * What users wrote stands in fields, never in the event, and is cut at 256 characters; nothing in a line can break it.
"""

import logging
import traceback
from collections.abc import Mapping
from itertools import islice
from pathlib import PurePath
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

QUIET = ("botocore", "aiobotocore", "boto3", "s3transfer", "aiohttp", "urllib3", "asyncio", "httptools", "watchfiles")
TOLD_BY_US = ("botocore.credentials", "aiobotocore.credentials")
"""They warn at every request, with a traceback, while credentials cannot be renewed; `aws.credentials` says it once."""
VALUE_CHARACTERS = 256
TRACEBACK_CHARACTERS = 8_000
CHAINED_ERRORS = 5
ITEMS = 20
DEPTH = 4

SECRET = (
    *("payload", "body", "customattributes", "metadata", "credential", "authorization"),
    *("token", "secret", "password", "passwd", "signature", "accesskey", "apikey", "privatekey", "cookie", "headers"),
)
"""A field is dropped where its key holds one of these, letters and digits alone counted. Numbers stay: `payload_bytes`."""


def configure(fmt: LogFormat, level: LogLevel, stream: TextIO) -> None:
    """Sends all logging of the process to `stream`: one JSON object a line, or a line for a person to read.

    Replaces what was configured before. Loggers are had from `structlog.get_logger(__name__)`.
    """
    ours: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_traceback),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *ours, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(_is_wanted)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=ours,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_last_steps(fmt, stream)],
        )
    )
    _replace_root_handlers(handler, logging.getLevelNamesMapping()[level.upper()])


def _last_steps(fmt: LogFormat, stream: TextIO) -> list[Processor]:
    if fmt == "json":
        return [redact, structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(),
        # The default shows the locals of every frame where `rich` is installed.
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [redact, _one_line, console]


def _replace_root_handlers(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in TOLD_BY_US:
        logging.getLogger(name).setLevel(logging.ERROR)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Holds back what a library logs through a child logger whose level somebody lowered."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] not in QUIET


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Leaves only fields that may be shown, in a form that is bounded."""
    limits = {"exception": TRACEBACK_CHARACTERS}
    return {
        key: _shown(value, limits.get(key, VALUE_CHARACTERS), DEPTH)
        for key, value in event.items()
        if not is_secret(key, value)
    }


def is_secret(key: object, value: object) -> bool:
    """Whether a field of this name may hold a payload or a credential."""
    if isinstance(value, int | float | None):
        return False
    letters = "".join(filter(str.isalnum, str(key))).lower()
    return any(word in letters for word in SECRET)


def _shown(value: object, limit: int, depth: int) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return _cut(str(value), limit)
        case PurePath() | BaseException():
            return _cut(str(value), limit)
        case Mapping() if depth:
            few = islice(value.items(), ITEMS)
            return {
                _cut(str(key), limit): _shown(item, limit, depth - 1) for key, item in few if not is_secret(key, item)
            }
        case list() | tuple() | set() | frozenset() if depth:
            return [_shown(item, limit, depth - 1) for item in islice(value, ITEMS)]
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case _:
            return f"<{type(value).__qualname__}>"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """For the eye: a terminal would obey what JSON escapes. A traceback keeps its lines, each set in."""
    return {key: _escaped(value) if key != "exception" else _set_in(value) for key, value in event.items()}


def _escaped(value: object) -> object:
    text = value if isinstance(value, str) else str(value)
    if text.isprintable():
        return value
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _set_in(text: str) -> str:
    return "\n".join(f"    {_escaped(line)}" for line in text.split("\n"))


def _traceback(exc_info: ExcInfo) -> str:
    """The error and what led to it, the last cause first; no locals, each message cut."""
    chain: list[BaseException] = []
    error: BaseException | None = exc_info[1]
    while error is not None and error not in chain and len(chain) < CHAINED_ERRORS:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(_one_error(error) for error in reversed(chain))


def _one_error(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    inner = (
        [_one_error(each) for each in islice(error.exceptions, ITEMS)] if isinstance(error, BaseExceptionGroup) else []
    )
    return "\n".join([frames, f"{type(error).__qualname__}: {_cut(str(error), VALUE_CHARACTERS)}", *inner]).lstrip("\n")
