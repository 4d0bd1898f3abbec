"""A sandbox that can be told, by SIGUSR1, to hold an output for every job of a file: a million of them within seconds.

`python -m benchmarks.service.filled NAME RUN_ID JOBS` prints where it listens, and "filled" when all outputs are there.
"""

import asyncio
import signal
import sys
import tempfile
import time
from pathlib import Path

from dispatcher.identity import filename, inference_id, output_path_extension
from dispatcher.model import SHARD_JOBS, RunId
from dispatcher.sandbox.app import App
from dispatcher.sandbox.blobs import Blob
from dispatcher.sandbox.control import Control
from dispatcher.sandbox.objects import StoredObject
from dispatcher.sandbox.record import Recorder
from dispatcher.sandbox.settings import Settings
from dispatcher.sandbox.wire import Connection

BUCKET = "sandbox-out"


def key(name: str, run: RunId, line: int) -> str:
    """Where the output of a line goes."""
    extension = output_path_extension(name, run, (line - 1) // SHARD_JOBS)
    return f"results/{extension}/{filename(inference_id(run, line))}"


async def main(name: str, run: RunId, jobs: int) -> None:
    """Serves until its parent is gone."""
    loop, ended, wanted = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        app = App(Settings(), Path(folder), Recorder(None, loop.call_later))
        app.control = Control(app).answer
        server = await loop.create_server(lambda: Connection(app, set()), "127.0.0.1", 0)
        loop.add_reader(sys.stdin.fileno(), ended.set)
        loop.add_signal_handler(signal.SIGUSR1, wanted.set)
        print(server.sockets[0].getsockname()[1], flush=True)
        filling = asyncio.create_task(_fill(app, wanted, name, run, jobs))
        await ended.wait()
        filling.cancel()
        server.close()


async def _fill(app: App, wanted: asyncio.Event, name: str, run: RunId, jobs: int) -> None:
    await wanted.wait()
    for first in range(1, jobs + 1, SHARD_JOBS):
        for line in range(first, min(first + SHARD_JOBS, jobs + 1)):
            entry = StoredObject(Blob(b"{}"), time.time(), "application/json")
            app.store.buckets[BUCKET].put(key(name, run, line), entry)
        await asyncio.sleep(0)
    print("filled", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], RunId(sys.argv[2]), int(sys.argv[3])))
