"""Ranks of one machine: all-reduce beside MPI's own, and steps of two ranks beside one process with two threads.

    python benchmarks/ranks.py all_reduce
    python benchmarks/ranks.py steps --model_shape opt-1.3b --num_layers 4 --precision int8
    python benchmarks/ranks.py simulate --precision int8

`simulate` calculates steps of 66B and 175B on GPUs; nothing is measured (see `simulated_ranks.py`). The other two start
their ranks with the `mpirun` beside the interpreter. Both sides of a comparison take turns: sums within a round, steps
process by process. Weights are random; a layer takes as long in a short model as in a deep one.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # the commands set it, too

import torch
from transformers import OPTConfig, OPTForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

from simulated_ranks import BYTES_EACH, simulated_table

from opt_trt.backends.build import build
from opt_trt.backends.inductor.decoder.compiled import open_decoder
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.host.cache import cache_dir
from opt_trt.plugins.cpu.isa import runnable_isas
from opt_trt.plugins.native.library import FLAGS, compile_library, find_compiler
from opt_trt.runtime.scheduling import kv_cache
from opt_trt.step import StepInputs

RANKS = 2
FLOATS = (256, 768, 2048, 8192, 12_288, 32_768, 65_536, 262_144)  # 1 KB to 1 MB
ROUNDS = 20
FLOATS_A_ROUND = 4_000_000  # of each side, in at most a thousand calls
CONTEXT, STEPS, PROCESSES = 200, 100, 5
SHAPES = {"opt-125m": (768, 12, 3072), "opt-1.3b": (2048, 32, 8192)}  # hidden, heads, ffn
WEIGHT_ONLY = {"dtype": "float16", "use_weight_only": True, "defer_quantization": True}
PRECISIONS = {
    "float32": {"dtype": "float32"}, "float16": {"dtype": "float16"},
    "int8": WEIGHT_ONLY, "int4": WEIGHT_ONLY | {"weight_only_precision": "int4"},
}  # fmt: skip


def launch(ranks: int, *arguments: object) -> str:
    """Run this script with the arguments in some ranks, which share two cores; return its output."""
    command = [sys.executable, __file__, *map(str, arguments)]
    if ranks > 1:
        mpirun = Path(sys.executable).with_name("mpirun")
        command = [mpirun, "--allow-run-as-root", "--bind-to", "none", "-n", str(ranks), *command]
    environment = os.environ | {"OMP_NUM_THREADS": str(2 // ranks)}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def all_reduce_rank(library: Path) -> None:
    """Time all ways to sum in turns on every rank; rank 0 prints the table."""
    from mpi4py import MPI

    world, sums = MPI.COMM_WORLD, Sums(ctypes.CDLL(library))
    if world.Get_rank() == 0:
        print("floats    ours, us (GB/s)      MPI, us (GB/s)       ours / MPI: median, min-max     by torch, us")
    for floats in FLOATS:
        x, total = torch.randn(1, floats), torch.empty(1, floats)
        calls = min(1000, FLOATS_A_ROUND // floats)
        sides = {name: functools.partial(time_side, x, total) for name, time_side in sums.sides.items()}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, run in sides.items():
                run(calls=max(1, calls // 10))
                world.Barrier()
                times[name].append(run(calls=calls))
        if world.Get_rank() == 0:
            ratios = sorted(ours / mpi for ours, mpi in zip(times["ours"], times["mpi"], strict=True))
            us = {name: statistics.median(values) for name, values in times.items()}
            cells = "".join(f"{f'{us[name]:.2f} ({4 * floats / us[name] / 1e3:.1f})':<21}" for name in ("ours", "mpi"))
            ratio = f"{statistics.median(ratios):.2f}, {ratios[0]:.2f}-{ratios[-1]:.2f}"
            print(f"{floats:<10}{cells}{ratio:<32}{us['torch']:.2f}", flush=True)


class Sums:
    """The ways to sum over all ranks; each function of x, total and the number of calls returns microseconds.

    `ours` and `mpi` are called from C++. `torch` calls ours from Python, as an operator of torch.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        from mpi4py import MPI

        from opt_trt.plugins.collectives import cpu as rendezvous

        library.join.restype = ctypes.c_void_p
        library.time_ours.restype = library.time_mpi.restype = ctypes.c_double
        self._library, self._world = library, MPI.COMM_WORLD
        self._operators = compile_library(runnable_isas()[0].march, cache_dir() / "plugins").operators()
        rendezvous.join(self._operators, self._world, timeout_s=60)
        rendezvous.join(self, self._world, timeout_s=60)
        allreduce = ctypes.cast(ctypes.CDLL(MPI.__file__).MPI_Allreduce, ctypes.c_void_p).value
        handles = [MPI._handleof(handle) for handle in (MPI.FLOAT, MPI.SUM, self._world)]
        self._mpi = (ctypes.c_int64 * 4)(allreduce, *handles)
        self.sides = {"ours": self.ours, "mpi": self.mpi, "torch": self.torch}

    def join_shared_memory(self, memory: torch.Tensor, ranks: int, rank: int, timeout_s: float, spins: int) -> None:
        """Join the ranks in the timed library; `rendezvous.join` calls this."""
        self._memory = memory
        numbers = (ctypes.c_int64(value) for value in (memory.numel(), ranks, rank))
        pointer = ctypes.c_void_p(memory.data_ptr())
        joined = self._library.join(pointer, *numbers, ctypes.c_double(timeout_s), ctypes.c_int64(spins))
        self._group = ctypes.c_void_p(joined)

    def ours(self, x: torch.Tensor, total: torch.Tensor, calls: int) -> float:
        return self._library.time_ours(self._group, *_pointers(x, total, calls))

    def mpi(self, x: torch.Tensor, total: torch.Tensor, calls: int) -> float:
        return self._library.time_mpi(self._mpi, *_pointers(x, total, calls))

    def torch(self, x: torch.Tensor, total: torch.Tensor, calls: int) -> float:
        started = time.perf_counter_ns()
        for _ in range(calls):
            self._operators.all_reduce(x, RANKS)
        return (time.perf_counter_ns() - started) / calls / 1e3


def _pointers(x: torch.Tensor, total: torch.Tensor, calls: int) -> tuple[object, ...]:
    numbers = ctypes.c_int64(x.numel()), ctypes.c_int64(calls)
    return ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(total.data_ptr()), *numbers


def compile_sums(directory: Path) -> Path:
    """Compile the library of `all_reduce.cpp` like the plugin library."""
    source, library = Path(__file__).with_name("all_reduce.cpp"), directory / "all_reduce.so"
    command = [
        find_compiler(),
        *FLAGS,
        "-fvisibility=default",
        f"-march={runnable_isas()[0].march}",
        source,
        "-o",
        library,
    ]
    subprocess.run(command, check=True)
    return library


def step_rank(engine: Path) -> None:
    """Time generation steps of one sequence; rank 0 prints their median in milliseconds."""
    rank = 0
    if json.loads((engine / "config.json").read_text())["pretrained_config"]["mapping"]["world_size"] > 1:
        from mpi4py import MPI

        rank = MPI.COMM_WORLD.Get_rank()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    decoder = open_decoder(engine, rank)
    blocks = (CONTEXT + STEPS) // decoder.spec.tokens_per_block + 1
    caches = kv_cache.allocate(decoder.spec, blocks)
    for cache in caches:
        cache.zero_()
    times = []
    for position in range(CONTEXT, CONTEXT + STEPS):
        started = time.perf_counter()
        decoder.step(one_token(position, blocks), caches)
        times.append(time.perf_counter() - started)
    if rank == 0:
        print(statistics.median(times[STEPS // 5 :]) * 1e3)


def one_token(position: int, blocks: int) -> StepInputs:
    return StepInputs(
        input_ids=torch.tensor([5]), position_ids=torch.tensor([position]), slot_mapping=torch.tensor([position]),
        query_start=torch.tensor([0, 1], dtype=torch.int32), kv_lens=torch.tensor([position + 1], dtype=torch.int32),
        block_tables=torch.arange(blocks, dtype=torch.int32)[None], last_token_ids=torch.tensor([0]),
    )  # fmt: skip


def compare_steps(flags: argparse.Namespace, work: Path) -> None:
    """Compare one process with two threads and two ranks with one thread each, process by process."""
    engines = {ranks: make_rank_engine(flags, ranks, work) for ranks in (1, RANKS)}
    times: dict[int, list[float]] = {ranks: [] for ranks in engines}
    for _ in range(PROCESSES):
        for ranks, engine in engines.items():
            times[ranks].append(float(launch(ranks, "step_rank", "--engine_dir", engine)))
    ratios = sorted(two / one for one, two in zip(times[1], times[RANKS], strict=True))
    print(f"{flags.model_shape}, {flags.num_layers} layers, {flags.precision}, 1 token at {CONTEXT} of context, ms:")
    for ranks, values in times.items():
        print(f"  {ranks} rank(s), {2 // ranks} thread(s) each: {statistics.median(values):.2f} "
              f"({min(values):.2f}-{max(values):.2f})")  # fmt: skip
    print(f"  tp 2 / one process: {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


def make_rank_engine(flags: argparse.Namespace, ranks: int, work: Path) -> Path:
    """Build an engine of a random model of a real shape, for some tensor-parallel ranks."""
    hidden, heads, ffn = SHAPES[flags.model_shape]
    if not (work / "model").is_dir():
        torch.manual_seed(0)
        OPTForCausalLM(
            OPTConfig(hidden_size=hidden, word_embed_proj_dim=hidden, num_attention_heads=heads, ffn_dim=ffn,
                      num_hidden_layers=flags.num_layers)
        ).save_pretrained(work / "model")  # fmt: skip
    checkpoint, engine = work / f"checkpoint{ranks}", work / f"engine{ranks}"
    quiet = {"log_level": "warning"}
    convert(ConvertConfig(model_dir=str(work / "model"), output_dir=str(checkpoint), tp_size=ranks, **quiet,
                          **PRECISIONS[flags.precision]))  # fmt: skip
    build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(engine), max_batch_size=4, max_seq_len=1024,
                      output_timing_cache=str(work / "model.cache"), **quiet))  # fmt: skip
    return engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("all_reduce", "steps", "simulate", "all_reduce_rank", "step_rank"),
                        help="ranks run the last two")  # fmt: skip
    parser.add_argument("--model_shape", choices=SHAPES, default="opt-1.3b")
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--precision", choices=PRECISIONS, default="float16")
    parser.add_argument("--engine_dir", type=Path, help="the engine for step_rank")
    parser.add_argument("--library", type=Path, help="the library for all_reduce_rank")
    flags = parser.parse_args()
    if flags.what == "all_reduce":
        compile_library(runnable_isas()[0].march, cache_dir() / "plugins")
        with tempfile.TemporaryDirectory() as directory:
            print(launch(RANKS, "all_reduce_rank", "--library", compile_sums(Path(directory))), end="")
    elif flags.what == "simulate":
        if flags.precision not in BYTES_EACH:
            parser.error(f"simulate knows {', '.join(BYTES_EACH)}, not {flags.precision}")
        print(*simulated_table(flags.precision), sep="\n")
    elif flags.what == "all_reduce_rank":
        all_reduce_rank(flags.library)
    elif flags.what == "step_rank":
        step_rank(flags.engine_dir)
    else:
        with tempfile.TemporaryDirectory() as directory:
            compare_steps(flags, Path(directory))


if __name__ == "__main__":
    main()
