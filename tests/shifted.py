"""The dispatcher under a clock that is off: `python -m tests.shifted ARGUMENTS`, with a file's path in CLOCK_OFF.

The file holds by how many seconds the clock is ahead, and may change at any time; without the file it is right. Both of
Python's doors to the time are shifted, for the dispatcher and for the SDK, before either is imported.
"""

import datetime
import os
import time
from datetime import datetime as _datetime
from pathlib import Path
from typing import Any

_file = Path(os.environ["CLOCK_OFF"])
_time = time.time


def _off() -> float:
    try:
        return float(_file.read_text() or 0)
    except FileNotFoundError:
        return 0.0


class _Kind(type(_datetime)):  # type: ignore[misc]  # so that every datetime is one of these
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


class _Shifted(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _datetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.UTC).replace(tzinfo=None)


if __name__ == "__main__":
    time.time = lambda: _time() + _off()
    datetime.datetime = _Shifted  # type: ignore[misc]
    from dispatcher.cli.main import main

    main()
