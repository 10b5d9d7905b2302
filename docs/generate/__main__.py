"""Write every generated document."""

from __future__ import annotations

from docs.generate.pages import pages


def main() -> None:
    """Write the documents that changed, and name them."""
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
