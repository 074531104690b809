"""What GitHub reads of this repository: workflows, the action and its page, and issue forms."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from netsweep import __version__

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
PAGE = ROOT / "docs" / "github.md"

USED = sorted([*GITHUB.glob("workflows/*.yml"), *GITHUB.glob("actions/*/action.yml")])


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def jobs(path: Path) -> Iterator[dict[str, Any]]:
    yield from load(path).get("jobs", {}).values()


@pytest.mark.parametrize("path", USED, ids=lambda path: str(path.relative_to(GITHUB)))
def test_actions_of_others_are_pinned_by_commit_and_keep_no_credentials(path: Path) -> None:
    for line in re.findall(r"^(?: *- | *)uses: (.*)", path.read_text(), re.MULTILINE):
        if not line.startswith("./"):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
    for job in jobs(path):
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", sorted(GITHUB.glob("workflows/*.yml")), ids=lambda path: str(path.name))
def test_workflows_have_no_permission_and_their_jobs_the_least(path: Path) -> None:
    assert load(path)["permissions"] == {}
    for job in jobs(path):
        publishes = any(step.get("uses", "").startswith("pypa/") for step in job["steps"])
        assert job["permissions"] == ({"id-token": "write"} if publishes else {"contents": "read"})
        assert ("environment" in job) == publishes
        assert job["timeout-minutes"]


def test_a_version_is_a_release_only_where_the_tag_has_it() -> None:
    release = load(GITHUB / "workflows" / "release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 takes "on" for true
    assert "secrets." not in (GITHUB / "workflows" / "release.yml").read_text()
    assert release["jobs"]["publish"]["needs"] == "build"
    (check,) = [step for step in release["jobs"]["build"]["steps"] if step.get("name", "").startswith("Check")]
    for tag, right in ((f"v{__version__}", True), (__version__, False), (f"v{__version__}0", False), ("v", False)):
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-c", check["run"]],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "GITHUB_REF_NAME": tag},
        )
        assert (done.returncode == 0, done.stdout == "") == (right, right)


def test_dependabot_looks_after_actions_and_python_packages() -> None:
    updates = {each["package-ecosystem"]: each for each in load(GITHUB / "dependabot.yml")["updates"]}
    assert updates.keys() == {"github-actions", "pip"}
    assert updates["github-actions"]["directories"] == ["/", "/.github/actions/*"]


def test_the_page_describes_every_input_and_output_of_the_action() -> None:
    action = load(GITHUB / "actions" / "sweep" / "action.yml")
    text = PAGE.read_text()
    for head, names in (("input", action["inputs"]), ("output", action["outputs"])):
        found = re.search(rf"^\| {head} \|.*\n\|[- |]*\n((?:\|.*\n)+)", text, re.MULTILINE)
        assert found
        first = [row.split("|")[1] for row in found[1].splitlines()]
        assert re.findall("`([a-z-]+)`", " ".join(first)) == list(names)
    used = [step for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) for step in yaml.safe_load(block)]
    assert used
    for step in used:
        assert step.get("with", {}).keys() <= action["inputs"].keys()
        for output in re.findall(r"steps\.sweep\.outputs\.([a-z-]+)", str(step)):
            assert output in action["outputs"]


def test_an_issue_form_asks_for_a_report_of_doctor() -> None:
    form = load(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")
    assert form.keys() >= {"name", "description", "body"}
    fields = {each["id"]: each for each in form["body"] if each["type"] != "markdown"}
    assert "doctor --report" in fields["report"]["attributes"]["label"]
    assert fields["report"]["validations"]["required"]
    assert load(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}
