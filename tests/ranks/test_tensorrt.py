"""A TensorRT engine of two ranks under mpirun: rank 0 answers, and the others do what their kind of runner needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ranks.conftest import StartRanks
from tests.trtllm._engine_dirs import write_engine
from tests.trtllm._package import environment, install


@pytest.mark.parametrize(("flags", "kind", "calls"), [
    ((), "ModelRunnerCpp", [1, 0]),  # ranks that do not lead compute by themselves
    (("--use_py_session",), "ModelRunner", [1, 1]),  # every rank makes every call
])  # fmt: skip
def test_rank_0_answers_for_all(
    start_ranks: StartRanks, tmp_path: Path, flags: tuple[str, ...], kind: str, calls: list[int]
) -> None:
    package = install(tmp_path / "site")
    (tmp_path / "in.csv").write_text("1,3\n2,2,1\n")
    (tmp_path / "seen").mkdir()
    engine = write_engine(tmp_path / "engine", world_size=2)
    run = start_ranks(
        2, "run.py", "--engine_dir", engine, "--max_output_len", 4, "--input_file", tmp_path / "in.csv",
        "--output_csv", tmp_path / "out.csv", *flags,
        PYTHONPATH=environment(package)["PYTHONPATH"], DOUBLE_SEEN=str(tmp_path / "seen"),
    )  # fmt: skip
    assert run.wait() == 0, run.stderr
    assert (tmp_path / "out.csv").read_text() == "1,3,4,8,16,32,2\n2,2,1,5,10,20,40\n"
    told = [json.loads((tmp_path / "seen" / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [(t["class"], t["rank"], t["calls"]) for t in told] == [(kind, 0, calls[0]), (kind, 1, calls[1])]
    assert [t["shut_down"] for t in told] == [int(kind == "ModelRunnerCpp")] * 2  # before MPI ends
