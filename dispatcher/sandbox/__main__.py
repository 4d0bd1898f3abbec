"""`python -m dispatcher.sandbox`: a sandbox until SIGTERM or SIGINT; says where it is in one line of JSON on stdout."""

import asyncio
import contextlib
import gc
import os
import signal
import sys

import click
import msgspec
import uvloop

from dispatcher.errors import DispatcherError
from dispatcher.sandbox.server import serve
from dispatcher.sandbox.settings import Settings, load


@click.command()
@click.option("--settings", "source", default="{}", help="A JSON file, or JSON itself.")
@click.option("--host", help="The address to listen on (127.0.0.1).")
@click.option("--port", type=int, help="The port to listen on; 0 takes a free one.")
@click.option("--record", help="Where to write the record of all that is accepted.")
@click.option("--time-scale", type=float, help="Multiplies RequestTTLSeconds and InvocationTimeoutSeconds.")
@click.option("--die-with-parent", is_flag=True, help="End when stdin ends, as it does when the parent dies.")
def main(source: str, die_with_parent: bool, **given: str | float | None) -> None:
    """Runs the emulator of InvokeEndpointAsync and S3 until it is told to stop; prints where it is.

    \b
    Faults, endpoints and limits are settings, for example:
      --settings '{"endpoints": {"mine": {"min_seconds": 0.1, "fail_every": 40}},
                   "faults": [{"operation": "invoke", "kind": "throttle", "rate": 0.05}]}'
    GET URL/_sandbox/settings shows all of them, PATCH changes them while it runs, GET URL/_sandbox/counts what it has seen.
    The access key is `sandbox`, its secret `sandbox-secret`, the region us-east-1.
    """
    try:
        settings = msgspec.structs.replace(
            load(source), **{key: value for key, value in given.items() if value is not None}
        )
        _tune_collector()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_told(settings, die_with_parent))
    except DispatcherError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_status)


def _tune_collector() -> None:
    """A sandbox holds millions of objects that form no cycles; looking through them again and again is all cost."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)


async def _until_told(settings: Settings, die_with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(serve(settings, ready=lambda port: _announce(settings, port)))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    if die_with_parent:
        loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 4096) or serving.cancel())
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def _announce(settings: Settings, port: int) -> None:
    scheme = "http" if settings.tls_certificate is None else "https"
    said = {"url": f"{scheme}://{settings.host}:{port}", "pid": os.getpid(), "record": settings.record}
    click.echo(msgspec.json.encode(said))


if __name__ == "__main__":
    main()
