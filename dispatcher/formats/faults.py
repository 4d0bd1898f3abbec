"""What is wrong with a line, said in words a person can act on.

A message says what, in which field, and what to do. It never quotes a payload, is bounded, and has only printable
characters, so that it may go to a terminal, a log field and a result file as it is.
"""

from msgspec import Struct

from dispatcher.model import FailureReason

MESSAGE_MAX_CHARS = 400
_SHOWN_MAX_CHARS = 60


class LineError(Struct, frozen=True):
    """Why a line is no job, or why its payload cannot be had. `id` is the job's own where it could be read."""

    reason: FailureReason
    message: str
    id: str | None = None


def line_error(reason: FailureReason, message: str, id: str | None = None) -> LineError:
    """Builds a LineError whose message is cut and cleaned."""
    return LineError(reason, printable(message)[:MESSAGE_MAX_CHARS], id)


def field_error(field: str, problem: str) -> LineError:
    """Builds the error of a field that is there and wrong."""
    return line_error(FailureReason.INVALID_FIELD, f"{field} {problem}")


def shown(text: str) -> str:
    """A name or a short value from a line, quoted for a message: cut, and printable."""
    cut = text if len(text) <= _SHOWN_MAX_CHARS else text[: _SHOWN_MAX_CHARS - 1] + "…"
    return f"'{printable(cut)}'"


def printable(text: str) -> str:
    """The text with `?` for every character that a terminal would not print."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
