"""Small and large files in their two lines."""

import asyncio
from pathlib import Path

from dispatcher.sources.turns import SMALL_BYTES, Turns, size_on_disk


async def take_turn(turns: Turns, size_bytes: int, order: "asyncio.Queue[int]", end: asyncio.Event) -> None:
    async with turns.of(size_bytes):
        order.put_nowait(size_bytes)
        await end.wait()


async def test_small_files_have_their_turn_however_many_large_ones_wait() -> None:
    turns, order, end = Turns(3), asyncio.Queue[int](), asyncio.Event()
    sizes = [SMALL_BYTES + n for n in range(1, 11)]
    async with asyncio.TaskGroup() as tasks:
        for size in [*sizes, 10, SMALL_BYTES]:
            tasks.create_task(take_turn(turns, size, order, end))
        assert [await order.get() for _ in range(5)] == [*sizes[:3], 10, SMALL_BYTES]
        assert order.empty()
        end.set()
    assert [order.get_nowait() for _ in range(order.qsize())] == sizes[3:], "each waits for those before it alone"


def test_the_size_of_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    assert (size_on_disk(tmp_path / "a"), size_on_disk(tmp_path / "b")) == (2, 0)
