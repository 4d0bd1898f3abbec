"""The sandbox's own operations, for whoever runs it: JSON, unsigned, and only from this machine.

GET   /_sandbox/health
GET   /_sandbox/settings     what it runs with now
PATCH /_sandbox/settings     changes some of it; answers with all of it
GET   /_sandbox/counts       requests and jobs
DELETE /_sandbox/counts      counts from nought
GET   /_sandbox/record       writes out the record; answers with its path and size
"""

from pathlib import Path
from typing import Any

import msgspec

from dispatcher.errors import UsageError
from dispatcher.sandbox.app import App
from dispatcher.sandbox.blobs import Blob
from dispatcher.sandbox.messages import Reply, Request
from dispatcher.sandbox.settings import as_dict, patched


class Control:
    """Answers what is asked under `/_sandbox/`."""

    def __init__(self, app: App) -> None:
        self._app = app

    def answer(self, request: Request, name: str, body: Blob) -> Reply:
        """Does what is asked."""
        if not request.loopback:
            return _json(403, {"error": "control is for this machine alone"})
        match request.method, name:
            case b"GET", "health":
                return _json(200, {"status": "ok"})
            case b"GET", "settings":
                return _json(200, as_dict(self._app.settings))
            case b"PATCH", "settings":
                return self._patch(body)
            case b"GET", "counts":
                return _json(200, self._counts())
            case b"DELETE", "counts":
                self._app.counts.reset()
                return _json(200, self._counts())
            case b"GET", "record":
                return _json(200, self._record())
            case _:
                return _json(404, {"error": f"no such control operation: {request.method.decode()} {name}"})

    def _patch(self, body: Blob) -> Reply:
        try:
            patch = msgspec.json.decode(body.read(0, body.size), type=dict[str, Any])
            self._app.replace(patched(self._app.settings, patch))
        except (msgspec.DecodeError, UsageError) as error:
            return _json(400, {"error": str(error)})
        return _json(200, as_dict(self._app.settings))

    def _counts(self) -> dict[str, Any]:
        return {**self._app.counts.report(), "endpoints": self._app.runtime.waiting()}

    def _record(self) -> dict[str, Any]:
        self._app.recorder.flush()
        path = self._app.settings.record
        return {"path": path, "bytes": Path(path).stat().st_size if path is not None else 0}


def _json(status: int, value: Any) -> Reply:
    return Reply(status, (("Content-Type", "application/json"),), msgspec.json.encode(value))
