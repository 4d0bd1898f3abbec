"""The sandbox that a test has where its module makes none of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import a_sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """With an endpoint that works on several jobs side by side, so that results do not queue."""
    with a_sandbox(tmp_path, endpoint={"instances": 16}) as running:
        yield running
