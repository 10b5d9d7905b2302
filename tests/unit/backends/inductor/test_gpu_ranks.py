"""Ranks on GPUs, without a GPU: which GPU each takes, how they sum, what they refuse, and what a stage runs."""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from opt_trt.backends.inductor.decoder import cuda_ranks
from opt_trt.backends.inductor.decoder.program_table import CONTEXT, CudaProgramTable
from opt_trt.backends.inductor.decoder.rank_forward import RankForward
from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.errors import UserError
from opt_trt.graph.programs import stage_programs
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ReferenceOps
from opt_trt.plugins import collectives
from opt_trt.plugins.collectives import cuda_group as functional
from opt_trt.plugins.collectives import cuda_pipeline as gpu_pipeline
from opt_trt.plugins.collectives.links import GpuAssignment, RankGpu, RankLinks
from opt_trt.runtime import session
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from opt_trt.step import StepInputs
from tests.unit._decoders import SumDecoder, spec
from tests.unit._engines import write_engine_config

GPUS = "opt_trt.plugins.collectives.cuda"
FOUR = GpuAssignment(tuple(RankGpu(host, index, host + str(index)) for host in ("a", "b") for index in (0, 1)))
SHARED = GpuAssignment((RankGpu("a", 0, "x"), RankGpu("a", 1, "y"), RankGpu("a", 0, "x")))


def links_of(assignment: GpuAssignment, rank: int) -> RankLinks:
    return RankLinks(rank, assignment, None, None)


def test_ranks_with_a_gpu_each_sum_by_nccl_in_captured_steps():
    assert str(FOUR) == (
        "rank 0 on GPU 0 of a, rank 1 on GPU 1 of a, rank 2 on GPU 0 of b, rank 3 on GPU 1 of b; sums by NCCL"
    )
    assert [links_of(FOUR, rank).sharers for rank in range(4)] == [1] * 4
    assert links_of(FOUR, 2).is_capturable


def test_ranks_that_share_a_gpu_sum_through_the_host_in_steps_that_are_launched():
    assert str(SHARED) == (
        "rank 0 on GPU 0 of a, rank 1 on GPU 1 of a, rank 2 on GPU 0 of a; ranks that share a GPU exchange sums "
        "through the host, which is slow: start them where each has a GPU of its own"
    )
    assert [links_of(SHARED, rank).sharers for rank in range(3)] == [2, 1, 2]
    assert not links_of(SHARED, 1).is_capturable  # all sum in one way


@pytest.mark.parametrize(("sharers", "blocks"), [(None, 1), (1, 8), (2, 4)])
def test_a_kv_cache_takes_its_share_of_its_gpu_not_of_its_host(sharers, blocks, monkeypatch):
    tiny = spec(sharers=sharers)
    monkeypatch.setattr(session, "free_bytes", lambda device: 8 * tiny.kv_block_bytes())
    eight = SimpleNamespace(rank=0, local_size=8, fewest=lambda count: count)
    opened = DecoderSession(SumDecoder(tiny), KvCacheLimit(free_fraction=1.0), ranks=eight)
    assert len(opened.executor.kv_cache[0]) == blocks


@pytest.mark.parametrize(("stage", "ends"), [(0, ("embedding",)), (1, ()), (2, ("head_1",))])
def test_a_stage_loads_its_programs_for_all_phases_and_buckets(stage, ends):
    table = CudaProgramTable(sequences=1, tokens=12, logits=1, has_half_sums=False)
    names = table.names(stage_programs(Mapping(3, pp_size=3), stage))
    assert sorted(names) == sorted(("layer_generation_1", "layer_context_16", *ends))


def test_a_compiler_is_told_the_size_of_a_group_that_is_not_there():
    from torch._C._distributed_c10d import _resolve_process_group

    name = functional.group_name(4)
    with functional.group_in_name_only(4):
        assert _resolve_process_group(name).size() == 4
    with pytest.raises(RuntimeError, match="Could not resolve the process group"):
        functional.GroupCollectives(4).all_reduce(torch.ones(1, 1))


@pytest.fixture
def gpus(monkeypatch):
    """The module where ranks meet, in a world of one."""
    node = SimpleNamespace(Get_rank=lambda: 3, Get_size=lambda: 1, Free=lambda: None)
    world = SimpleNamespace(
        Get_rank=lambda: 0, Get_size=lambda: 1, allgather=lambda value: [value], Split_type=lambda kind: node,
        allreduce=lambda value, operation: value, bcast=lambda value: value, Dup=lambda: world,
    )  # fmt: skip
    fake = SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=world, COMM_TYPE_SHARED=0, LAND=None))
    before = sys.modules.pop(GPUS, None)
    monkeypatch.setitem(sys.modules, "mpi4py", fake)
    module = import_module(GPUS)
    monkeypatch.setattr(module, "own_gpu", lambda: RankGpu("a", 0, "x"))
    yield module
    del sys.modules[GPUS]
    if before is not None:
        sys.modules[GPUS] = before


def test_ranks_of_a_host_take_its_gpus_in_turn(gpus, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for count in (0, 2, 8):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        gpus.take_gpu()  # the fourth of its host
    assert taken == [1, 3]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"is_initialized": True}, "has called torch.distributed.init_process_group, .* in a program that does not"),
        ({"is_nccl_available": False}, "has no NCCL, by which ranks on GPUs sum; install torch's own build for CUDA"),
    ],
)
def test_ranks_that_cannot_join_are_told_why(found, text, gpus, monkeypatch):
    for name, value in found.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(UserError, match=text):
        gpus.connect(Mapping(), torch.float16, 60.0)


def test_for_ever_is_a_duration_that_torch_takes(gpus):
    assert gpus._duration(float("inf")).total_seconds() == gpus.LONGEST_S
    assert gpus._duration(1800.0).total_seconds() == 1800 + gpus.LATER_S


@pytest.mark.parametrize(
    ("assignment", "rank", "capture", "said"),
    [(FOUR, 0, "graphs", f"{FOUR}\n"), (FOUR, 3, "graphs", ""), (SHARED, 0, cuda_ranks.Relaunched, f"{SHARED}\n")],
)
def test_a_rank_opens_on_its_gpu_and_the_first_one_says_who_has_which(
    assignment, rank, capture, said, tmp_path, monkeypatch, capsys
):
    order = []

    def connect(mapping, dtype, timeout_s):
        order.append(("connect", mapping, dtype, timeout_s))
        return links_of(assignment, rank)

    fake = SimpleNamespace(take_gpu=lambda: order.append("take"), connect=connect)
    monkeypatch.setattr(collectives, "cuda", fake, raising=False)
    monkeypatch.setattr(cuda_ranks, "visible_gpu", lambda: order.append("look"))
    monkeypatch.setattr(cuda_ranks, "check_gpu", lambda *_: order.append("check"))
    monkeypatch.setattr(cuda_ranks, "gpu_model", lambda directory, config, rank: f"model of {rank}")
    monkeypatch.setattr(cuda_ranks, "cuda_forward", lambda *given: given)
    monkeypatch.setattr(cuda_ranks, "SharedCaptures", lambda: "graphs")
    monkeypatch.setattr(cuda_ranks, "CudaRankDecoder", lambda *given: given)
    config = write_engine_config(tmp_path)
    opened = cuda_ranks.open_cuda_rank(tmp_path, config, RuntimeOptions(), 60.0)
    assert opened == ((config, f"model of {rank}", CONTEXT, rank, None), capture, links_of(assignment, rank))
    assert order == ["take", "look", "check", ("connect", Mapping(), torch.float32, 60.0)]
    assert capsys.readouterr().err == said


def test_a_world_of_one_meets_sums_and_leaves(gpus, monkeypatch):
    monkeypatch.setattr(GpuAssignment, "library", "gloo")
    monkeypatch.setattr(gpus.atexit, "register", lambda leave: None)
    links = gpus.connect(Mapping(), torch.float16, 60.0, "cpu")
    assert (links.rank, links.sharers) == (0, 1)
    functional.join_group(torch.distributed.group.WORLD)
    alone, x = functional.GroupCollectives(1), torch.arange(6.0).view(2, 3).half()
    assert torch.equal(alone.all_reduce(x), x)
    assert torch.equal(alone.all_gather(x[:, :2], 2), x[:, :2])  # part of other memory
    gpus._leave()
    assert not torch.distributed.is_initialized()


def test_what_a_part_without_logits_gives_can_be_joined_with_the_others():
    """A device without memory stands for the GPU."""
    forward = object.__new__(RankForward)
    forward.rank_logits = RankLogits(Mapping(), 0, 5, ReferenceOps())
    nothing = forward.head(torch.empty(3, 4, device="meta"), StepInputs(*[torch.empty(0)] * 7))
    assert torch.cat((nothing, torch.empty(2, 5, device="meta"))).shape == (2, 5)


class Message:
    """Work of `torch.distributed` that is done when it is waited for."""

    def __init__(self, done):
        self.wait = done


def test_hidden_states_are_kept_until_they_have_arrived_and_received_in_their_type(monkeypatch):
    """Parts of a step are received in their order; nothing that was sent is let go before the answer."""
    waited, mailbox = [], []
    fakes = SimpleNamespace(
        isend=lambda x, to: mailbox.append((to, x)) or Message(lambda: waited.append(to)),
        irecv=lambda x, source: Message(lambda: x.copy_(mailbox.pop(0)[1])),
    )
    monkeypatch.setattr(gpu_pipeline, "distributed", fakes)
    host = [
        SimpleNamespace(is_first=stage == 0, is_last=stage == 1, answer=lambda found, shapes: found) for stage in (0, 1)
    ]
    state_format = gpu_pipeline.StateFormat(torch.bfloat16, "cpu", "cpu")
    mapping = Mapping(4, tp_size=2, pp_size=2)
    first, last = (gpu_pipeline.GpuPipeline(mapping, 2 * stage, state_format, host[stage]) for stage in (0, 1))
    parts = [torch.full((tokens, 3), float(tokens), dtype=torch.bfloat16) for tokens in (2, 1)]
    pending = [last.expect(tokens, 3) for tokens in (2, 1)]
    for part in parts:
        first.send(part)
    assert [to for to, _ in mailbox] == [2, 2] and waited == []
    assert all(torch.equal(last.receive(each), part) for each, part in zip(pending, parts, strict=True))
    first.answer([], [])
    assert waited == [2, 2]
    assert last.answer([parts[0]], [(2, 3)])[0].dtype == torch.bfloat16
