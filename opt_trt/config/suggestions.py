"""Guess which name was meant by one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType

CUTOFF = 0.7  # share of letters in common; at 0.6, `log_lev` is like `top_k`


def did_you_mean(name: str, known: Iterable[str], called: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """Return `did you mean max_batch_size?`, or None if no known name is like `name`.

    Names that begin with it come first: `tp` is `tp_size`. Dashes count as underscores. `called` has the names to
    suggest in place of known ones.
    """
    plain = name.lower().replace("-", "_")
    by_plain = {k.lower().replace("-", "_"): called.get(k, k) for k in known}
    longer = [k for k in by_plain if k.startswith(f"{plain}_")]
    found = longer or get_close_matches(plain, by_plain, n=1, cutoff=CUTOFF)
    suggested = dict.fromkeys(by_plain[k] for k in found[:2])
    return f"did you mean {' or '.join(suggested)}?" if found else None
