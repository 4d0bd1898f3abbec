"""The JSON Schema of the settings file, from the class that reads it.

TOML has no null, so what may be None is simply left out.
"""

from typing import Any, cast

import msgspec

from dispatcher.settings import Settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def settings_schema() -> dict[str, Any]:
    """The schema of `serve --config FILE`."""
    made = plain(Settings)
    for name, said in made["properties"].items():
        made["properties"][name] = without_null(said)
    return {
        "$schema": DIALECT,
        **made,
        "title": "Settings of the dispatcher",
        "description": "A TOML file for --config. Environment variables DISPATCHER_… and flags win over it.",
    }


def plain(kind: Any) -> dict[str, Any]:
    """The schema of a struct that has no struct within."""
    _, components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    (only,) = components.values()
    return cast(dict[str, Any], only)


def without_null(said: dict[str, Any]) -> dict[str, Any]:
    """A property that may be null, as one that may be left out instead."""
    if said.get("default", 0) is None:
        said = {key: value for key, value in said.items() if key != "default"}
    if "anyOf" not in said:
        return said
    kinds = [kind for kind in said["anyOf"] if kind.get("type") != "null"]
    rest = {key: value for key, value in said.items() if key != "anyOf"}
    return {**rest, **kinds[0]} if len(kinds) == 1 else {**rest, "anyOf": kinds}
