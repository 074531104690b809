"""How reports are shown: as text, as JSON, and for GitHub's log and step summary."""
