"""Writes docs/reference from the code: ``python -m docs.generate``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from docs.generate.commands import commands_page
from docs.generate.files import files_page
from docs.generate.networks import networks_page
from docs.generate.params import params_page
from docs.generate.search_spaces import search_spaces_page

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/reference"

PAGES: dict[str, Callable[[Path], str]] = {
    "params.md": params_page,
    "search-spaces.md": search_spaces_page,
    "commands.md": commands_page,
    "files.md": files_page,
    "networks.md": networks_page,
}
"""File -> function that returns its text; it takes the folder of the project."""


def main() -> None:
    """Writes the pages that have changed, and names them."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text_of in PAGES.items():
        path, text = REFERENCE / name, text_of(ROOT)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} is written", file=sys.stderr)


if __name__ == "__main__":
    main()
