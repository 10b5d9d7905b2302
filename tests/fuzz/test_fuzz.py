"""Every reader answers a mutated input with success or with one error line, soon, and leaves nothing behind."""

from __future__ import annotations

import os
import time

import pytest

from tests.fuzz._inputs import Fuzzer
from tests.fuzz._targets import TARGETS

INPUTS = 5  # of each reader in every run
MANY = int(os.environ.get("OPT_TRT_FUZZ_INPUTS", 500))  # of each reader in the slow test: about an hour
SEED = int(os.environ.get("OPT_TRT_FUZZ_SEED", time.time() // 86_400))  # another one every day; failures name it


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if not target.slow])
def test_mutated_inputs_are_read_or_refused(fuzzer: Fuzzer, target: str) -> None:
    assert not fuzzer.problems(target, seed=0, count=INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_mutated_inputs_are_read_or_refused(fuzzer: Fuzzer, target: str) -> None:
    assert not fuzzer.problems(target, SEED, MANY)
