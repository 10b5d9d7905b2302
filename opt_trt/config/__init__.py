"""The flags of each command, as dataclasses; standard library only, so that `--help` is instant."""
