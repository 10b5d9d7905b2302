"""Which process of how many this is, from the environments of all launchers."""

from __future__ import annotations

from pathlib import Path

import pytest

from opt_trt.backends import open_rank
from opt_trt.backends.engine import read_engine_config
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.runtime.follow import Opening
from opt_trt.runtime.ranks import ALONE
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.world import World, current_world
from opt_trt.runtime.world.communicator import step_timeout
from opt_trt.runtime.world.standard_input import input_ends
from tests.unit._engines import write_engine_config

MPIRUN = "mpirun of Open MPI"
ENVIRONMENTS = {  # what the fourth process of four sees, two of which are on each of two hosts
    MPIRUN: {
        "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    },
    "mpirun of MVAPICH": {
        "MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_RANK": "3", "MV2_COMM_WORLD_LOCAL_SIZE": "2",
        "MV2_COMM_WORLD_LOCAL_RANK": "1", "PMI_SIZE": "4", "PMI_RANK": "3",
    },
    "mpirun of MPICH": {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"},
    "srun": {
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
    },
    "torchrun": {
        "WORLD_SIZE": "4", "RANK": "3", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none",
    },
}  # fmt: skip


def test_without_a_launcher_the_world_is_one() -> None:
    assert current_world({"OMPI_COMM_WORLD_SIZE": "4"}) == World(0, 1, 0, 1, None)


@pytest.mark.parametrize("launcher", ENVIRONMENTS)
def test_a_launcher_is_believed(launcher: str) -> None:
    world = current_world(ENVIRONMENTS[launcher])
    assert (world, world.is_leader) == (World(3, 4, 1, 2, launcher), False)


@pytest.mark.parametrize(("size", "claimed"), [("4", True), ("1", False)])
def test_variables_that_anything_may_have_left_are_a_claim(size: str, claimed: bool) -> None:
    assert current_world({"WORLD_SIZE": size, "RANK": "0"}).is_claimed == claimed
    assert not current_world({"WORLD_SIZE": size}).is_claimed


def test_mpirun_inside_a_slurm_job_is_believed_first() -> None:
    assert current_world(ENVIRONMENTS["srun"] | ENVIRONMENTS[MPIRUN]).launcher == MPIRUN


@pytest.mark.parametrize(("host", "local_size"), [("0", 3), ("1", 2), ("2", 2), ("3", 1)])
def test_slurm_lists_the_processes_of_all_hosts(host: str, local_size: int) -> None:
    environ = ENVIRONMENTS["srun"] | {"SLURM_STEP_TASKS_PER_NODE": "3,2(x2),1", "SLURM_NODEID": host}
    assert current_world(environ).local_size == local_size


def test_processes_are_on_one_host_where_the_launcher_says_nothing_of_hosts() -> None:
    assert current_world({"PMI_SIZE": "4", "PMI_RANK": "3"}) == World(3, 4, 3, 4, "mpirun of MPICH")


@pytest.mark.parametrize(("started", "advice"), [(2, "mpirun -n 1 or without mpirun"), (1, "mpirun -n 4")])
def test_a_world_of_another_size_than_the_engines_is_refused(started: int, advice: str) -> None:
    with pytest.raises(
        UserError, match=f"it was built for {advice[10]} ranks?, {started} process(es were| was) .* {advice}"
    ):
        World(0, started).require(int(advice[10]))


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("2.5", 2.5)])
def test_the_time_a_step_may_take_is_read_from_the_environment(text: str, seconds: float) -> None:
    assert step_timeout({"OPT_TRT_STEP_TIMEOUT": text}) == seconds
    assert step_timeout({}) == 1800


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
def test_a_time_that_is_none_is_named(text: str) -> None:
    with pytest.raises(UserError, match=f"OPT_TRT_STEP_TIMEOUT must be seconds, or 0 .*, found '{text}'"):
        step_timeout({"OPT_TRT_STEP_TIMEOUT": text})


def test_an_engine_that_is_not_the_leaders_is_refused(tmp_path: Path) -> None:
    fingerprint = write_engine_config(tmp_path).fingerprint()
    assert read_engine_config(tmp_path).fingerprint() == fingerprint
    opening = Opening(tmp_path, KvCacheLimit(), Scheduling(), fingerprint="of another engine")
    with pytest.raises(UserError, match=f"expected the engine of rank 0 in {tmp_path}, found another one; copy"):
        open_rank(opening, ALONE)


@pytest.mark.parametrize(
    ("launcher", "source", "ends"),
    [
        (None, "pipe:[7]", True), ("srun", "pipe:[7]", True), (MPIRUN, "/dev/pts/3", True), (MPIRUN, "/dev/tty1", True),
        (MPIRUN, "pipe:[7]", False), (MPIRUN, "/tmp/prompts.txt", False), (MPIRUN, "/dev/null", False),
    ],
)  # fmt: skip
def test_open_mpi_tells_the_end_of_no_input(
    launcher: str | None, source: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.readlink", lambda path: source)
    assert input_ends(World(launcher=launcher)) == ends


def test_an_input_that_cannot_be_looked_at_is_taken_for_one_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getppid", lambda: 0)
    assert not input_ends(World(launcher=MPIRUN))
