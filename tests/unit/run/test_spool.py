"""Logits of many prompts: on disk as soon as an output is finished, or refused if even those in flight do not fit."""

from __future__ import annotations

import gc
import resource
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.host.memory import address_space_left
from opt_trt.run import spool
from opt_trt.run.spool import Spool, check_memory
from opt_trt.runtime.in_flight import finished
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit._decoders import SumDecoder, spec

GATHERS = spec(gather_context_logits=True, gather_generation_logits=True, max_batch_size=2, max_num_tokens=10)


def request(prompt_len: int, new: int = 3, context: bool = True, generation: bool = False) -> Request:
    return Request(
        (3,) * prompt_len, new, return_context_logits=context, return_generation_logits=generation
    )  # fmt: skip


def test_arrays_come_back_in_any_order(tmp_path: Path) -> None:
    values = [torch.arange(6.0).view(2, 3), torch.zeros(0, 3), torch.full((1, 3), -1.5)]
    kept = [(of := Spool(tmp_path)), *map(of.keep, values)][1:]
    for one, whole in reversed(list(zip(kept, values, strict=True))):
        assert one.read().dtype == np.float32 and one.read().tolist() == whole.tolist()
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_finished_result_is_kept_by_its_receiver_alone() -> None:
    session = DecoderSession(SumDecoder(GATHERS), KvCacheLimit())
    seen: list[weakref.ref[torch.Tensor]] = []
    indices = []
    for index, result in finished(session, [request(4 + n, new=1 + n % 2) for n in range(5)]):
        indices.append(index)
        assert result.context_logits is not None and len(result.context_logits) == 4 + index
        seen.append(weakref.ref(result.context_logits))
        del result
        gc.collect()
        assert sum(ref() is not None for ref in seen) == 0
    assert sorted(indices) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("requests", "rows"),
    [
        ([request(4), request(8), request(6)], (8 + 6) + 10 + 8),  # in flight, of one step, and of one output
        ([request(4, new=5, generation=True)], 9 + 9 + 9),
        ([request(2, context=False, new=7, generation=True)], 7 + 7 + 7),
    ],
)
def test_logits_in_flight_must_fit(monkeypatch: pytest.MonkeyPatch, requests: list[Request], rows: int) -> None:
    needed = rows * GATHERS.vocab_size * 4
    monkeypatch.setattr(spool, "available_bytes", lambda: needed)
    check_memory(requests, GATHERS)
    monkeypatch.setattr(spool, "available_bytes", lambda: needed - 1)
    with pytest.raises(UserError, match=r"sequences in flight take 0\.0 GB of memory, 0\.0 GB are there"):
        check_memory(requests, GATHERS)
    check_memory([request(8, context=False)], GATHERS)


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert address_space_left() == float("inf")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**44, 2**44))
    assert 0 < address_space_left() < 2**44
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**20, 2**20))
    assert address_space_left() == 0
