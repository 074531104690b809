"""What netsweep writes as JSON, read as its schema says that it is; and the schema as tables, for docs/json.md."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator

_ENDS = 20
"""How many rules from each end of a list are looked at: some tests make thousands."""


def schema() -> dict[str, Any]:
    """The schema that ``netsweep schema`` prints."""
    loaded: dict[str, Any] = json.loads(resources.files("netsweep.output").joinpath("schema.json").read_text("ascii"))
    return loaded


def objects() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object with fields of its own, by the path of names that leads to it."""
    for name, definition in schema()["$defs"].items():
        yield from _objects(name, definition)


def _objects(path: str, definition: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "properties" in definition:
        yield path, definition
        for name, field in definition["properties"].items():
            yield from _objects(f"{path}.{name}", field)


@functools.cache
def _validator() -> Draft202012Validator:
    """Stricter than the schema, which allows for fields of later versions: one that it does not describe is wrong."""
    strict = schema()
    for definition in strict["$defs"].values():
        for _, found in _objects("", definition):
            found["additionalProperties"] = False  # type: ignore[index]
    Draft202012Validator.check_schema(strict)
    return Draft202012Validator(strict)


def valid(written: dict[str, Any]) -> dict[str, Any]:
    """``written``, which has to be as the schema says."""
    seen = {name: _ends(value) if isinstance(value, list) else value for name, value in written.items()}
    if errors := [f"{error.json_path}: {error.message}" for error in _validator().iter_errors(seen)]:
        raise AssertionError("not as the schema says: " + "; ".join(errors))
    return written


def read(text: str) -> dict[str, Any]:
    """The object that ``text`` holds, which has to be as the schema says."""
    return valid(json.loads(text))


def _ends(items: list[Any]) -> list[Any]:
    return items if len(items) <= 2 * _ENDS else items[:_ENDS] + items[-_ENDS:]


def tables() -> str:
    """All fields as Markdown, object by object."""
    return "\n\n".join(
        f"### {path}\n\n{definition['description']}\n\n{_table(definition)}" for path, definition in objects()
    )


def _table(definition: Mapping[str, Any]) -> str:
    rows = [f"| `{name}` | {_kind(field)} | {_about(field)} |" for name, field in definition["properties"].items()]
    return "\n".join(["| field | value | meaning |", "| --- | --- | --- |", *rows])


def _about(field: Mapping[str, Any]) -> str:
    text = field.get("description") or _resolved(field)["description"]
    return str(text).replace("|", "\\|").replace("_", "\\_")


def _resolved(field: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schema()["$defs"][field["$ref"].rpartition("/")[2]]
    return found


def _kind(field: Mapping[str, Any]) -> str:
    """The kind of value in words: ``integer or null``, ``array of rule``, or the values that there are."""
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "anyOf" in field:
        return " or ".join(_kind(each) for each in field["anyOf"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kinds = [field["type"]] if isinstance(field["type"], str) else field["type"]
    if "items" in field:
        kinds = [f"array of {_kind(field['items'])}" if kind == "array" else kind for kind in kinds]
    return " or ".join(kinds)
