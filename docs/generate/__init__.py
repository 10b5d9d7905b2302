"""The documents that are printed from the code: `python -m docs.generate` (or `make docs`) writes them again."""
