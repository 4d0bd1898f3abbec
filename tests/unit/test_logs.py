"""Log lines: their form, their bounds, and that nothing secret gets into one."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import structlog
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

from dispatcher.interfaces import Invocation
from dispatcher.logs import QUIET, LogFormat, configure
from dispatcher.model import EndpointName, FailureReason, InferenceId

CANARY = "canary-7f3a"
Log = Callable[..., None]


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in QUIET}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_time_level_logger_event_and_fields(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    structlog.get_logger("dispatcher.lanes").warning("lane paused", endpoint="e", reason=FailureReason.NETWORK, jobs=3)
    (line,) = written(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "lane paused",
        "level": "warning",
        "logger": "dispatcher.lanes",
        "endpoint": "e",
        "reason": "network",
        "jobs": 3,
    }


def test_a_library_logs_through_the_same_chain(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    logging.getLogger("some.library").warning("took %d s", 3, extra={"token": CANARY})
    (line,) = written(stream)
    assert (line["event"], line["level"], line["logger"]) == ("took 3 s", "warning", "some.library")
    assert CANARY not in stream.getvalue()


@pytest.mark.parametrize(("level", "lines"), [("debug", 3), ("info", 2), ("error", 1)])
def test_less_than_the_level_is_not_written(stream: io.StringIO, level: Any, lines: int) -> None:
    configure("json", level, stream)
    log = structlog.get_logger("dispatcher")
    log.debug("a")
    log.info("b")
    log.error("c")
    assert len(written(stream)) == lines


def test_configuring_again_replaces_what_was_there(stream: io.StringIO) -> None:
    configure("json", "info", io.StringIO())
    configure("json", "info", stream)
    structlog.get_logger().info("once")
    assert len(written(stream)) == 1


@pytest.mark.parametrize("name", [*QUIET, "botocore.auth", "aiohttp.client"])
def test_libraries_that_print_requests_stay_at_warning(stream: io.StringIO, name: str) -> None:
    configure("json", "debug", stream)
    logging.getLogger(name).debug(CANARY)
    logging.getLogger(name).info(CANARY)
    logging.getLogger(name).warning("heard")
    assert [line["event"] for line in written(stream)] == ["heard"]


def test_a_library_logger_that_was_lowered_by_hand_is_held_back(stream: io.StringIO) -> None:
    configure("json", "debug", stream)
    lowered = logging.getLogger("botocore.canary")
    lowered.setLevel(logging.DEBUG)
    lowered.debug(CANARY)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_a_call_by_botocore_leaves_no_secret_even_at_debug(stream: io.StringIO, fmt: LogFormat) -> None:
    configure(fmt, "debug", stream)
    session = botocore.session.Session()
    session.set_credentials(f"{CANARY}-id", f"{CANARY}-key", f"{CANARY}-session")
    client = session.create_client(
        "sagemaker-runtime",
        region_name="eu-central-1",
        # Port 9, discard: nobody listens, the request is logged all the same.
        endpoint_url="http://127.0.0.1:9",
        config=Config(retries={"mode": "standard", "total_max_attempts": 1}),
    )
    with pytest.raises(EndpointConnectionError):
        client.invoke_endpoint_async(EndpointName="e", Body=CANARY.encode(), CustomAttributes=CANARY)
    client.close()
    structlog.get_logger("dispatcher").debug("after")
    assert CANARY not in stream.getvalue()
    assert "after" in stream.getvalue()


@pytest.mark.parametrize("fmt", ["json", "text"])
@pytest.mark.parametrize(
    "key",
    [
        *("payload", "payload_base64", "body", "Body", "custom_attributes", "CustomAttributes", "X-Amz-Security-Token"),
        *("authorization", "session_token", "secret", "aws_secret_access_key", "AccessKeyId", "credentials", "headers"),
    ],
)
def test_a_field_that_could_hold_a_secret_is_dropped(stream: io.StringIO, fmt: LogFormat, key: str) -> None:
    configure(fmt, "info", stream)
    structlog.get_logger().info("a", **{key: CANARY, "nested": {key: CANARY, "list": [{key: CANARY}]}})
    assert CANARY not in stream.getvalue()


def test_a_number_is_kept_whatever_its_name(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    structlog.get_logger().info("a", payload_bytes=128_000)
    assert written(stream)[0]["payload_bytes"] == 128_000


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_an_object_is_named_and_not_shown(stream: io.StringIO, fmt: LogFormat) -> None:
    configure(fmt, "info", stream)
    invocation = Invocation(
        endpoint=EndpointName("e"),
        inference_id=InferenceId("i"),
        filename=None,
        output_path_extension=None,
        content_type=None,
        accept=None,
        custom_attributes=CANARY,
        request_ttl_seconds=None,
        invocation_timeout_seconds=None,
        body=CANARY.encode(),
        input_location=None,
    )
    structlog.get_logger().info("a", sent=invocation, data=CANARY.encode(), held=[invocation])
    assert CANARY not in stream.getvalue()
    assert "<Invocation>" in stream.getvalue()
    assert "<11 bytes>" in stream.getvalue()


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_a_traceback_comes_without_locals(stream: io.StringIO, fmt: LogFormat) -> None:
    configure(fmt, "info", stream)
    log = structlog.get_logger()

    def fail(held: str) -> None:
        raise ValueError(len(held))

    try:
        fail(f"{CANARY}")
    except ValueError:
        log.exception("failed", path=Path("/x"))
        logging.getLogger("library").exception("failed too")
    assert CANARY not in stream.getvalue()
    assert stream.getvalue().count("ValueError: 11") == 2
    assert "in fail" in stream.getvalue()


def test_a_traceback_tells_causes_and_groups_with_each_message_cut(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    group = ExceptionGroup("two", [ValueError("x" * 10_000), KeyError("k")])
    group.__cause__ = OSError("disk")
    structlog.get_logger().error("failed", exc_info=group)
    lines = written(stream)[0]["exception"].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["OSError", "ExceptionGroup", "ValueError", "KeyError"]
    assert max(map(len, lines)) < 300


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_what_a_user_wrote_is_cut_and_cannot_break_the_line(stream: io.StringIO, fmt: LogFormat) -> None:
    configure(fmt, "info", stream)
    forged = "x\n2026-01-01 [info] forged\x1b[2J\u2028\x85"
    structlog.get_logger().info("bad line", id=forged, long="y" * 10_000)
    assert stream.getvalue().isascii() or fmt == "text"
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b[2J" not in stream.getvalue()
    assert "y" * 257 not in stream.getvalue()


def test_the_event_of_a_library_cannot_break_a_line_of_text(stream: io.StringIO) -> None:
    configure("text", "info", stream)
    logging.getLogger("library").warning("a\nb")
    assert len(stream.getvalue().splitlines()) == 1


def test_collections_are_bounded_in_length_and_depth(stream: io.StringIO) -> None:
    configure("json", "info", stream)
    nested: object = CANARY
    for _ in range(10):
        nested = [nested]
    structlog.get_logger().info("a", many=list(range(1_000)), deep=nested)
    (line,) = written(stream)
    assert line["many"] == list(range(20))
    assert line["deep"] == [[[["<list>"]]]]
