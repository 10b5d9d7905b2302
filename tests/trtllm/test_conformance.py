"""The backend fits every release it knows: flags, checkpoints, failures, names."""

from __future__ import annotations

import pytest

from tests.trtllm._checks import CHECKS
from tests.trtllm._facts import load, releases


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("release", releases())
def test_the_backend_fits_the_release(release, check):
    CHECKS[check](load(release).facts)
