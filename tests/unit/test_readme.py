"""What the README prints from the code is what the code says."""

import re

from dispatcher.cli.main import COMMANDS, EXIT_CODES
from dispatcher.metrics import DEFINITIONS
from tests.readme import README, printed


def test_the_tables_and_the_diagram_are_those_of_the_code() -> None:
    text = README.read_text("utf-8")
    assert text == printed(text), "run: python -m tests.readme"


def test_every_metric_has_a_row() -> None:
    text = README.read_text("utf-8")
    assert all(f"| `{definition.full_name}` |" in text for definition in DEFINITIONS)


def test_every_command_has_a_row() -> None:
    named = set(re.findall(r"^\| `dispatcher (\w+)", README.read_text("utf-8"), re.MULTILINE))
    assert named == set(COMMANDS)


def test_the_exit_statuses_are_those_of_the_help_text() -> None:
    shown = re.findall(r"^\| (\d+) \|", README.read_text("utf-8"), re.MULTILINE)
    assert shown == re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)
