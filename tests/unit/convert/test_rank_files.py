"""Workers run at the same time and hold one item each; the first failure stops all of them and is raised."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from opt_trt.checkpoint import weight_only as quantized
from opt_trt.checkpoint.packing import pack
from opt_trt.checkpoint.weight_only import quantize_and_pack, unpack_and_dequantize
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.host.workers import Scratch, for_each
from opt_trt.quant import MODES
from tests.unit._models import Model


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_item_is_worked_on_once(workers: int) -> None:
    done: list[int] = []
    for_each(iter(range(1, 100)), done.append, workers)
    assert sorted(done) == list(range(1, 100))


def test_as_many_workers_as_asked_for_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3)
    for_each(iter(range(1, 7)), lambda item: barrier.wait(timeout=30) and None, workers=3)
    assert not barrier.broken


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_items_exist_than_workers(workers: int) -> None:
    lock, existing, most = threading.Lock(), 0, 0

    def count(by: int) -> None:
        nonlocal existing, most
        with lock:
            existing += by
            most = max(most, existing)

    def items() -> Iterator[int]:
        for item in range(1, 30):
            count(1)
            yield item

    def work(item: int) -> None:
        time.sleep(0.001)
        count(-1)

    for_each(items(), work, workers)
    assert most <= workers


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_failure_stops_the_others_and_is_raised(workers: int) -> None:
    taken: list[int] = []

    def work(item: int) -> None:
        taken.append(item)
        if item == 5:
            raise UserError("item 5 is bad")
        time.sleep(0.002)

    with pytest.raises(UserError, match="item 5 is bad"):
        for_each(iter(range(1, 1000)), work, workers)
    assert len(taken) < 20


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failing_source_is_raised(workers: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise UserError("the file ends early")

    with pytest.raises(UserError, match="the file ends early"):
        for_each(items(), lambda item: None, workers)


def test_scratch_memory_is_used_again_by_its_thread_and_by_no_other() -> None:
    scratch = Scratch()
    large = scratch.empty((4, 3), torch.float32)
    small = scratch.empty((5,), torch.float16)
    assert (small.shape, small.dtype, small.data_ptr()) == ((5,), torch.float16, large.data_ptr())
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: scratch.empty((2,), torch.int8)).result()
    assert other.data_ptr() != large.data_ptr()
    assert scratch.empty((5, 3), torch.float32).shape == (5, 3)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_damaged_tensor_fails_a_conversion_of_any_workers(tmp_path: Path, workers: int) -> None:
    model = Model(layers=6)
    model.tensors["model.decoder.layers.3.fc2.bias"][3] = float("nan")
    source = model.write(tmp_path / "model")
    with pytest.raises(UserError, match=r"layers\.3\.fc2\.bias .* holds NaN"):
        convert(ConvertConfig(model_dir=str(source), output_dir=str(tmp_path / "out"), tp_size=2, workers=workers))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("block", [1, 64 * 128, 1 << 20])
def test_blocks_do_not_change_what_is_stored(mode, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "BLOCK_ELEMENTS", block)
    weight = torch.randn(320, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    q, scale = mode.quantize(weight)
    stored, stored_scale = quantize_and_pack(weight, mode, 80)
    assert torch.equal(stored, pack(q, mode.bits, 80)) and torch.equal(stored_scale, scale)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("sm", [80, 90, 120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_quantized_and_packed_comes_back_dequantized(
    mode, sm: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(320, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, scale = mode.quantize(weight)
    stored, stored_scale = quantize_and_pack(weight, mode, sm)
    monkeypatch.setattr(quantized, "BLOCK_ELEMENTS", 128 * 128)  # two blocks and a half
    back = unpack_and_dequantize(stored, stored_scale, mode, sm)
    assert torch.equal(back, (q.float() * scale.float()[:, None]).to(dtype)) and back.dtype == dtype
