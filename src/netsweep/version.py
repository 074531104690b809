"""The version, for those that only ask for it."""

__version__ = "0.1.0"
