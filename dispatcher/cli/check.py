"""`dispatcher check`."""

from pathlib import Path
from typing import Any

import click
import msgspec

from dispatcher.checks.everything import Report, check_everything
from dispatcher.checks.findings import Finding
from dispatcher.checks.selftest import SelfTest
from dispatcher.cli.options import configure_logs, run_async, settings_from, settings_options
from dispatcher.errors import UsageError
from dispatcher.model import INLINE_MAX_BYTES
from dispatcher.settings import Settings


@click.command()
@click.option("--self-test", is_flag=True, help="Send real jobs to each endpoint, and say what the service does.")
@click.option(
    "--self-test-wait", "wait", type=click.FloatRange(1, 21600), default=120.0, help="Seconds to wait for each result."
)
@click.option("--self-test-payload", "payload", metavar="FILE", help="What to send. Default: {}")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: findings, what was learnt, settings in force.")
@settings_options()
def check(self_test: bool, wait: float, payload: str | None, as_json: bool, **flags: Any) -> int:
    """Says whether settings, disk, SDK, credentials, endpoints and buckets are as a dispatcher needs them.

    One line for each thing it looks at. It leaves nothing behind. Exit status 0 if nothing failed, else 1.
    """
    settings = settings_from(flags)
    configure_logs(settings, quiet=True)
    test = SelfTest(payload=_payload(payload), wait_seconds=wait) if self_test else None
    report = run_async(check_everything(settings, test))
    if as_json:
        click.echo(_as_json(report, settings))
    else:
        _show(report)
    return 0 if report.passed else 1


def _payload(path: str | None) -> bytes:
    if path is None:
        return b"{}"
    try:
        # Looked at before it is opened: to open a pipe would wait for its writer.
        if not Path(path).is_file():
            raise UsageError(f"the payload {path} is not there, or no regular file")
        with Path(path).open("rb") as file:
            data = file.read(INLINE_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the payload {path}: {error.strerror}") from error
    if not 0 < len(data) <= INLINE_MAX_BYTES:
        size = f"more than {INLINE_MAX_BYTES} bytes" if data else "no bytes"
        raise UsageError(f"the payload {path} has {size}; the self-test takes 1 to {INLINE_MAX_BYTES}")
    return data


def _show(report: Report) -> None:
    for finding in report.findings:
        click.echo(_line(finding))
    for lesson in report.lessons:
        click.echo(f"{'learnt':11}  {lesson.endpoint}: {lesson.question}: {lesson.answer}")


def _line(finding: Finding) -> str:
    advice = f" — {finding.advice}" if finding.advice else ""
    return f"{finding.verdict:11}  {finding.check}: {finding.text}{advice}"


def _as_json(report: Report, settings: Settings) -> str:
    said = {"passed": report.passed, "checks": report.findings, "learnt": report.lessons, "settings": settings}
    return msgspec.json.encode(said).decode()
