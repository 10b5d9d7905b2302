"""Every generated document: where it is, and the text it should have."""

from __future__ import annotations

from pathlib import Path

from docs.generate.api_page import api_page
from docs.generate.cli_page import cli_page
from docs.generate.imports import read_house
from docs.generate.layers import with_layers
from docs.generate.picture import picture

DOCS = Path(__file__).parents[1]


def pages() -> dict[Path, str]:
    """Return the text of every generated document, by its path."""
    house = read_house()
    return {
        DOCS / "cli.md": cli_page(),
        DOCS / "api.md": api_page(),
        DOCS / "rooms.svg": picture(house),
        DOCS / "design.md": with_layers(DOCS / "design.md", house),
    }
