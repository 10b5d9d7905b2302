"""Compute operations: plugins offer tactics, a build checks and times them, an engine keeps the winners."""
