"""The KV cache is as large as asked for, as memory allows, and no block is lost or wrongly shared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.errors import UserError
from opt_trt.host.memory import available_bytes, free_bytes
from opt_trt.runtime.scheduling import kv_cache
from opt_trt.runtime.scheduling.block_pool import BlockPool
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit, pool_blocks
from opt_trt.runtime.scheduling.prefix_index import PrefixIndex
from tests.unit._decoders import SPEC, spec

PLENTY = 1 << 40
BLOCK_BYTES = 2 * 4 * 2 * 1 * 1 * 4  # layers * tokens * (keys, values) * heads * head size * fp32


def test_pool_holds_a_full_batch_of_longest_sequences() -> None:
    assert pool_blocks(spec(max_batch_size=4, max_seq_len=21), KvCacheLimit(), PLENTY) == 4 * 6


def test_max_tokens_is_rounded_up_to_whole_blocks() -> None:
    assert pool_blocks(SPEC, KvCacheLimit(max_tokens=9), PLENTY) == 3


def test_max_tokens_beyond_the_need_buys_nothing() -> None:
    assert pool_blocks(SPEC, KvCacheLimit(max_tokens=10**9), PLENTY) == 24


def test_pool_takes_its_share_of_free_memory_only() -> None:
    assert pool_blocks(SPEC, KvCacheLimit(free_fraction=0.5), 10 * BLOCK_BYTES) == 5


def test_memory_too_small_for_a_block_names_the_flag() -> None:
    with pytest.raises(UserError, match="--kv_cache_free_gpu_memory_fraction"):
        pool_blocks(SPEC, KvCacheLimit(), BLOCK_BYTES)


def test_no_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="--max_tokens_in_paged_kv_cache must be at least 1, found 0"):
        KvCacheLimit(max_tokens=0)


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, float("nan")])
def test_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="--kv_cache_free_gpu_memory_fraction"):
        KvCacheLimit(free_fraction=fraction)


def test_cache_has_a_tensor_per_layer_in_the_storage_type() -> None:
    cache = kv_cache.allocate(spec(num_layers=3, kv_dtype=torch.bfloat16, num_heads=5, head_size=7), 11)
    assert [(tuple(t.shape), t.dtype) for t in cache] == [((11, 2, 5, 4, 7), torch.bfloat16)] * 3


def test_cache_lies_on_the_decoders_device() -> None:
    assert {t.device.type for t in kv_cache.allocate(spec(device="meta"), 2)} == {"meta"}


def test_untouched_blocks_cost_no_memory() -> None:
    before = resident_bytes()
    cache = kv_cache.allocate(spec(head_size=64), (256 << 20) // spec(head_size=64).kv_block_bytes())
    assert sum(t.nbytes for t in cache) >= 255 << 20
    assert resident_bytes() - before < 32 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_more_than_the_address_space_is_named() -> None:
    with pytest.raises(UserError, match="no memory for a KV cache of"):
        kv_cache.allocate(SPEC, 1 << 55)


def test_block_freed_last_is_taken_first() -> None:
    pool = BlockPool(6)
    first = pool.take(2)
    pool.take(1)
    pool.give_back(first)
    assert (first, pool.take(3)) == ((0, 1), (0, 1, 3))


def test_freeing_a_block_twice_is_a_bug() -> None:
    pool = BlockPool(2)
    blocks = pool.take(2)
    pool.give_back(blocks)
    with pytest.raises(AssertionError, match="twice"):
        pool.give_back(blocks)


def test_a_shared_block_is_free_when_its_last_owner_gives_it_back() -> None:
    pool = BlockPool(2)
    blocks = pool.take(2)
    pool.share(blocks[:1])
    pool.give_back(blocks)
    assert (pool.num_free, pool.num_owners(blocks[0])) == (1, 1)
    pool.give_back(blocks[:1])
    assert pool.num_free == 2


def test_a_known_prefix_is_found_block_by_block() -> None:
    pool = BlockPool(4, PrefixIndex(2))
    blocks = pool.take(3)
    pool.remember([1, 2, 3, 4, 5], blocks)
    assert pool.find([1, 2, 3, 4, 5, 6]) == blocks[:2]  # the third was not full
    assert pool.find([1, 2, 9, 9]) == blocks[:1]
    assert pool.find([3, 4]) == ()  # the same tokens at another place are other keys and values


def test_a_second_copy_of_a_prefix_is_not_kept() -> None:
    pool = BlockPool(4, PrefixIndex(2))
    first, second = pool.take(1), pool.take(1)
    pool.remember([1, 2], first)
    pool.remember([1, 2], second)
    assert pool.find([1, 2]) == first


def test_the_prefix_unused_longest_is_forgotten_first_from_its_end() -> None:
    pool = BlockPool(4, PrefixIndex(2))
    old, new = pool.take(2), pool.take(1)
    pool.remember([1, 2, 3, 4], old)
    pool.remember([5, 6], new)
    pool.give_back(old)
    pool.give_back(new)
    assert pool.take(2) == (3, old[1])  # the block that was never used, then the end of the older prefix
    assert (pool.find([1, 2, 3, 4]), pool.find([5, 6])) == (old[:1], new)


def test_what_followed_a_forgotten_prefix_is_not_found_by_the_next_owner_of_its_block() -> None:
    index = PrefixIndex(1)
    index.add([1, 2], [0, 1])
    index.forget(0)
    index.add([3], [0])
    assert (index.find([3, 2]), index.find([1, 2])) == ((0,), ())
    index.add([1, 2], [5, 1])
    assert index.find([1, 2]) == (5, 1)


ACTIONS = st.lists(st.tuples(st.sampled_from(["take", "find", "give back"]), st.integers(1, 7)))


@settings(deadline=None)  # the machine may be busy
@given(ACTIONS, st.booleans())
def test_blocks_never_leak_and_a_known_one_holds_what_was_written(actions: list[tuple[str, int]], reuse: bool) -> None:
    pool, owners = BlockPool(16, PrefixIndex(1) if reuse else None), []
    content: dict[int, list[int]] = {}
    for action, number in actions:
        ids = [number % 3] * number
        if action == "give back" and owners:
            pool.give_back(owners.pop(number % len(owners)))
        elif action == "take" and number <= pool.num_free:
            owners.append(pool.take(number))
            content |= {block: ids[: place + 1] for place, block in enumerate(owners[-1])}
            pool.remember(ids, owners[-1])
        elif action == "find":
            owners.append(pool.find(ids))
            pool.share(owners[-1])
            assert [content[block] for block in owners[-1]] == [ids[: n + 1] for n in range(len(owners[-1]))]
        owned = Counter(block for blocks in owners for block in blocks)
        assert len(owned) == 16 - pool.num_free
        assert all(pool.num_owners(block) == owned[block] for block in range(16))
    for blocks in owners:
        pool.give_back(blocks)
    assert sorted(pool.take(16)) == list(range(16))


def fake_machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in ({"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 4000 kB\n"} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_available_memory_is_what_linux_says(tmp_path: Path) -> None:
    assert available_bytes(fake_machine(tmp_path, {})) == 4000 * 1024


def test_a_container_limit_of_a_parent_group_counts(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/pod"
    files = {
        "proc/self/cgroup": "0::/pod/box\n",
        f"{group}/box/memory.max": "max\n",
        f"{group}/box/memory.current": "600\n",
        f"{group}/memory.max": "1000\n",
        f"{group}/memory.current": "700\n",
        f"{group}/memory.stat": "anon 600\ninactive_file 50\n",
    }
    assert available_bytes(fake_machine(tmp_path, files)) == 1000 - 700 + 50


def test_a_version_1_container_limit_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/a\n3:memory:/a\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "500\n",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "100\n",
    }
    assert available_bytes(fake_machine(tmp_path, files)) == 400


def test_this_machine_has_memory() -> None:
    assert free_bytes("cpu") > 0


def test_a_gpus_free_memory_is_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    unused = [BLOCK_BYTES]  # of an engine that is closed: torch keeps it from the driver until it is asked
    monkeypatch.setattr("torch.cuda.empty_cache", unused.clear)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (3 * BLOCK_BYTES - sum(unused), 9 * BLOCK_BYTES))
    assert pool_blocks(spec(device="cuda"), KvCacheLimit(free_fraction=0.9), free_bytes("cuda")) == 2
