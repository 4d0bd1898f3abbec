"""`python -m dispatcher.schemas`: prints a schema or the sample; with `--write DIR` writes all of them."""

import json
from collections.abc import Callable
from pathlib import Path

import click

from dispatcher.schemas.joblines import job_line_schema
from dispatcher.schemas.sample import sample
from dispatcher.schemas.settings import settings_schema


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


KINDS: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("settings.schema.json", lambda: _json(settings_schema())),
    "job-line": ("job-line.schema.json", lambda: _json(job_line_schema())),
    "sample": ("dispatcher.toml", sample),
}
"""The name of each kind's file, and its text."""


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)), required=False)
@click.option("--write", metavar="DIR", help="Write all files into DIR.")
def main(kind: str | None, write: str | None) -> None:
    """Prints the JSON Schema of the settings or of a job line, or the sample of a settings file."""
    if write is not None:
        for name, text in KINDS.values():
            Path(write, name).write_text(text(), "utf-8")
    elif kind is not None:
        click.echo(KINDS[kind][1](), nl=False)
    else:
        raise click.UsageError(f"name one of {', '.join(KINDS)}, or a folder with --write")


if __name__ == "__main__":
    main()
