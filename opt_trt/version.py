"""The version of this package: engines and exported models record it."""

__version__ = "0.1.0"
