"""The parts of the README that are printed from the code: `python -m tests.readme` writes them anew."""

import re
from collections.abc import Callable
from pathlib import Path

from dispatcher.lifecycle import mermaid
from dispatcher.metrics import metrics_table
from dispatcher.settings import settings_table

README = Path(__file__).parent.parent / "README.md"

PARTS: dict[str, Callable[[], str]] = {
    "states": lambda: f"```mermaid\n{mermaid()}\n```",
    "settings": settings_table,
    "metrics": metrics_table,
}


def printed(text: str) -> str:
    """The README with each marked part as the code prints it now."""
    for name, part in PARTS.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not between.search(text):
            raise ValueError(f"the README has no part marked {name}")
        text = between.sub(lambda marks, part=part: marks[1] + part().strip() + "\n" + marks[2], text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    README.write_text(printed(README.read_text("utf-8")), "utf-8")
