"""Every generated document: where it is, and the text it should have."""

from __future__ import annotations

from pathlib import Path

from docs.generate.api_page import api_page
from docs.generate.cli_page import cli_page
from docs.generate.imports import read_rooms
from docs.generate.layers import with_layers
from docs.generate.picture import picture

DOCS = Path(__file__).parents[1]


def pages() -> dict[Path, str]:
    """Return the text of every generated document, by its path."""
    rooms = read_rooms()
    return {
        DOCS / "cli.md": cli_page(),
        DOCS / "api.md": api_page(),
        DOCS / "rooms.svg": picture(rooms),
        DOCS / "design.md": with_layers(DOCS / "design.md", rooms),
    }
