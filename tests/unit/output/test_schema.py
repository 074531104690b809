"""The schema is that of what is written, and docs/json.md is that of the schema."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from netsweep import Report
from netsweep.cli import run
from netsweep.model import BACKENDS, Verdict
from netsweep.profiles.options import CHOICES, FAMILIES
from netsweep.report import LeaseFile
from tests import schema
from tests.unit.output.reports import bridge, listed
from tests.unit.output.test_json import said

DOCUMENT = Path(__file__).parents[3] / "docs" / "json.md"


def enumerated(path: str, field: str) -> list[Any]:
    found: list[Any] = dict(schema.objects())[path]["properties"][field]["enum"]
    return found


def test_it_is_a_schema_and_describes_every_field() -> None:
    Draft202012Validator.check_schema(schema.schema())
    for path, definition in schema.objects():
        assert definition["description"].endswith("."), path
        assert set(definition.get("required", ())) <= definition["properties"].keys()
        for name, field in definition["properties"].items():
            assert "$ref" in field or field["description"].endswith("."), f"{path}.{name}"
            for unit, words in (("_ms", "milliseconds"), ("_seconds", "seconds")):
                assert not name.endswith(unit) or words in field["description"]


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    validator = Draft202012Validator(json.loads(printed.out))
    assert validator.is_valid(said(listed([])))
    assert not validator.is_valid({})
    assert not validator.is_valid({**said(listed([])), "deleted": "1"})
    assert not validator.is_valid({"command": "doctor"})
    # Later versions write more.
    assert validator.is_valid({**said(listed([])), "new": 1})


def test_the_values_are_those_of_the_code() -> None:
    verdicts = {verdict.value for verdict in Verdict}
    assert {*verdicts, None} == {*enumerated("rule", "verdict"), *enumerated("bridge", "verdict")}
    assert "leaked" not in enumerated("rule", "verdict")
    assert "orphan" not in enumerated("bridge", "verdict")
    assert tuple(enumerated("rule", "backend")) == tuple(enumerated("backend_report", "name")) == BACKENDS
    assert tuple(enumerated("settings", "backend")) == CHOICES
    assert tuple(enumerated("settings", "family")) == tuple(FAMILIES)


def test_what_the_tests_check_with_it_is_strict() -> None:
    """Each wrong report is found, wherever in it the fault is."""
    report = listed([])
    report.bridges = [bridge(f"hm{number:x}") for number in range(1, 5)]
    report.leases = LeaseFile("/tmp/leases")
    written = said(report)
    wrong: list[tuple[str, Any]] = [
        ("new", 1),
        ("schema", 2),
        ("command", "demo"),
        ("scanned", -1),
        ("scanned", 1.5),
        ("scanned", None),
        ("chains", None),
        ("duration_ms", "2"),
        ("leases", {**written["leases"], "new": 1}),
        ("locks", {"subnet": None}),
        ("bridges", [*written["bridges"][:3], {**written["bridges"][3], "verdict": "orphan"}]),
        ("backends", [{**written["backends"][0], "family": "arp"}]),
    ]
    for name, value in wrong:
        with pytest.raises(AssertionError, match="not as the schema says"):
            schema.valid({**written, name: value})
    for name in written:
        with pytest.raises(AssertionError, match="not as the schema says"):
            schema.valid({key: value for key, value in written.items() if key != name})


def test_a_report_of_nothing_is_as_it_says() -> None:
    for command in ("list", "sweep", "teardown", "restore"):
        said(Report(command))


def test_the_document_has_the_fields_of_the_schema() -> None:
    """With ``UPDATE_DOCS=1`` they are written there."""
    heading = "## Fields\n\n"
    text = DOCUMENT.read_text()
    expected = f"{text.partition(heading)[0]}{heading}{schema.tables()}\n"
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(expected)
    assert DOCUMENT.read_text() == expected
