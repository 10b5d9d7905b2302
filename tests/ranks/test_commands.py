"""The scripts under mpirun: one voice, and exit codes as without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks.conftest import StartRanks
from tests.unit._engines import write_engine_config

ERRORS = {  # what two processes are started for: what they say, once
    ("summarize.py", "--test_hf", "--hf_model_dir", "nowhere"): "expected a tokenizer",
    ("run.py", "--max_output_len", "0"): "--max_output_len must be at least 1, found 0",
    (
        "summarize.py",
        "--test_trt_llm",
        "--gpus_per_node",
        "8",
    ): "--gpus_per_node 8 is not supported: the launcher sets",
    ("run.py", "--max_output_len", "3", "--interactive"): "--interactive: mpirun does not pass on that prompts from a",
    ("build.py", "--checkpoint_dir", "c"): "build takes one process, 2 were started; run it without mpirun",
}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """What says that an engine has one rank; nothing else is looked at before that."""
    write_engine_config(tmp_path)
    return tmp_path


def test_help_is_printed_once(start_ranks: StartRanks) -> None:
    run = start_ranks(2, "run.py", "--help")
    assert run.wait() == 0
    assert run.output.count("Generate text with an engine") == 1


@pytest.mark.parametrize("words", ERRORS)
def test_a_mistake_is_named_once(words: tuple[str, ...], start_ranks: StartRanks) -> None:
    run = start_ranks(2, *words)
    assert run.wait() == 2
    assert len(run.errors) == 1 and run.errors[0].startswith(f"error: {ERRORS[words]}")


PROGRAMS = {
    "run.py": ("run.py", "--max_output_len", "3", "--input_file", "{ids}", "--output_csv", "{out}", "--engine_dir"),
    "LLM": ("-c", "import sys; from opt_trt import LLM; LLM(sys.argv[1], tokenizer=None)"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_more_processes_than_the_engine_has_ranks_are_refused(
    program: str, engine: Path, start_ranks: StartRanks
) -> None:
    (engine / "ids.csv").write_text("1,2,3\n")
    names = {"ids": engine / "ids.csv", "out": engine / "out.csv"}
    run = start_ranks(2, *(word.format(**names) for word in PROGRAMS[program]), engine)
    assert run.wait() == (2 if program == "run.py" else 1)
    assert "world size must equal the engine's: it was built for 1 rank, 2 processes were started" in run.stderr
    assert run.stderr.count({"run.py": "world size", "LLM": 'File "<string>"'}[program]) == 1


def test_ranks_that_mpi_does_not_join_are_refused_with_what_to_do(start_ranks: StartRanks) -> None:
    variables = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    run = start_ranks(1, "run.py", "--max_output_len", "3", **variables)
    assert run.wait() == 2
    [said] = run.errors
    assert said.startswith(
        "error: torchrun started 2 processes, but MPI joined 1; start them with the mpirun of the MPI"
    )
    assert said.endswith("mpirun -n 2")
