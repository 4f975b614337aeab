"""The command line: dataclasses become flags, and the only room that prints."""

from tinkering.cli.main import main

__all__ = ["main"]
