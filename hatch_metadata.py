"""The metadata that depend on where the repository is: the README as the package index shows it, and links.

README.md links to files beside it, which are not on the index. A build in a GitHub workflow, as of a release, makes
these links lead to the commit in the repository. Other builds do not know where that is, and name the files instead.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Called by hatchling for every build."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        at = _repository(os.environ)
        metadata["readme"] = {"content-type": "text/markdown", "text": outside(text, at)}
        if at:
            metadata["urls"] = {
                "Source": at["home"],
                "Documentation": f"{at['files']}/README.md",
                "Changelog": f"{at['files']}/CHANGELOG.md",
                "Issues": f"{at['home']}/issues",
            }


def _repository(environment: Mapping[str, str]) -> dict[str, str]:
    server, name, commit = map(environment.get, ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_SHA"))
    if not (server and name and commit):
        return {}
    home = f"{server}/{name}"
    return {"home": home, "files": f"{home}/blob/{commit}", "pictures": f"{home}/raw/{commit}"}


def outside(text: str, at: Mapping[str, str]) -> str:
    """``text`` with links that work outside of the repository, or without links to its files where ``at`` is empty."""

    def link(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if at:
            return f"{picture}[{words}]({at['pictures' if picture else 'files']}/{path})"
        return words if words == path else f"{words} ({path.partition('#')[0]})"

    return _RELATIVE.sub(link, text)
