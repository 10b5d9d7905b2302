"""One process that reads inputs, for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz._inputs import Fuzzer


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    fuzzer = Fuzzer(tmp_path_factory.mktemp("fuzz"))
    yield fuzzer
    fuzzer.close()
