"""The control socket, asked over a real one: whoever asks badly is told so."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dispatcher.admin.control import REQUEST_MAX_BYTES, control_socket, socket_path


async def looks(request: dict[str, Any]) -> Any:
    """An answer that looks at a path, as `partial` does."""
    return Path(request["folder"]).stat().st_size > 0


async def asked(ledger: Path, line: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(socket_path(ledger)))
    writer.write(line)
    async with asyncio.timeout(10.0):
        said = msgspec.json.decode(await reader.readline(), type=dict[str, Any])
    writer.close()
    return said


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b'{"folder": "a\\u0000b"}\n', "null"),
        (b'{"folder": "' + b"x" * 200_000 + b'"}\n', f"at most {REQUEST_MAX_BYTES} bytes"),
        (b'{"a": ' + b"[" * 20_000 + b"\n", "cannot be answered"),
        (b'{"a": ' * 10_000 + b"\n", "cannot be answered"),
        (b"{\n", "truncated"),
        (b"\n", "truncated"),
    ],
    ids=["NUL", "long", "deep list", "deep object", "cut", "empty"],
)
async def test_a_bad_request_is_answered_with_an_error(line: bytes, word: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    async with control_socket(ledger, looks):
        said = await asked(ledger, line)
        assert word in said["error"].lower()
        assert await asked(ledger, msgspec.json.encode({"folder": str(tmp_path)}) + b"\n") == {"answer": True}
