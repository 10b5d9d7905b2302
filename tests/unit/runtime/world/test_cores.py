"""Ranks of a host share its cores."""

from __future__ import annotations

import os

import pytest
import torch

from opt_trt.runtime.world import World, cores
from opt_trt.runtime.world.cores import SPIN_COUNT, share_cores, use_threads, warn_of_cut


class Host:
    """Which cores this process and its launcher may use."""

    def __init__(self, own: set[int], launchers: set[int]) -> None:
        self.own = own
        self._launchers = launchers

    def affinity(self, pid: int) -> set[int]:
        return self._launchers if pid else self.own

    def set_affinity(self, pid: int, cores: list[int]) -> None:
        self.own = set(cores)


def share(
    monkeypatch: pytest.MonkeyPatch, host: Host, world: World, threads: int | None = None, quota: float | None = None,
    **environ: str,
) -> str | None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", host.affinity)
    monkeypatch.setattr(os, "sched_setaffinity", host.set_affinity)
    monkeypatch.setattr(cores, "cpu_quota", lambda root: quota)
    share_cores(world, environ, threads)
    return environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize(("ranks", "threads"), [(2, "4"), (3, "2"), (8, "1"), (16, "1")])
def test_each_rank_of_a_host_gets_its_share(monkeypatch: pytest.MonkeyPatch, ranks: int, threads: str) -> None:
    host = Host(set(range(8)), set(range(8)))
    assert share(monkeypatch, host, World(0, 2 * ranks, 0, ranks)) == threads
    assert host.own == set(range(8))


def test_a_rank_bound_to_one_core_of_many_is_given_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host({1}, set(range(8)))
    assert share(monkeypatch, host, World(1, 2, 1, 2)) == "4"
    assert host.own == {4, 5, 6, 7}


def test_a_rank_bound_to_its_share_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host({1}, {0, 1})
    assert share(monkeypatch, host, World(0, 2, 0, 2)) == "1"
    assert host.own == {1}


def test_a_number_of_threads_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host({1}, set(range(8)))
    assert share(monkeypatch, host, World(0, 2, 0, 2), OMP_NUM_THREADS="3") == "3"
    assert host.own == {1}


def test_threads_sleep_soon_unless_the_user_says_how_long_they_spin() -> None:
    environs: list[dict[str, str]] = [{}, {"GOMP_SPINCOUNT": "5"}]
    for environ in environs:
        share_cores(World(), environ)
    assert [environ["GOMP_SPINCOUNT"] for environ in environs] == [SPIN_COUNT, "5"]


def test_a_world_of_one_uses_what_torch_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(monkeypatch, Host({0}, {0}), World()) is None


@pytest.mark.parametrize(("quota", "threads"), [(0.3, "1"), (1.0, "1"), (2.5, "2"), (8.0, None), (64.0, None)])
def test_a_quota_below_the_cores_limits_the_threads(
    monkeypatch: pytest.MonkeyPatch, quota: float, threads: str | None
) -> None:
    eight = set(range(8))
    assert share(monkeypatch, Host(eight, eight), World(), quota=quota) == threads


def test_ranks_of_a_host_share_its_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = set(range(8))
    assert share(monkeypatch, Host(eight, eight), World(0, 2, 0, 2), quota=4.0) == "2"


@pytest.mark.parametrize(("asked", "threads"), [(1, "1"), (3, "3"), (100, "8")])
def test_threads_that_are_asked_for_are_used_unless_they_cannot_run_at_once(
    monkeypatch: pytest.MonkeyPatch, asked: int, threads: str
) -> None:
    eight = set(range(8))
    assert share(monkeypatch, Host(eight, eight), World(), threads=asked, OMP_NUM_THREADS="5") == threads


def test_the_user_is_told_of_threads_that_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_cut(None, 2)
    warn_of_cut(2, 2)
    assert capsys.readouterr().err == ""
    warn_of_cut(8, 2)
    assert "8 threads were asked for; 2 can run here at once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("threads", "quota", "environ", "expected"),
    [(None, None, None, 4), (2, None, None, 2), (None, 1.0, None, 1), (None, 1.0, "3", 3), (9, None, "3", 8)],
)
def test_torch_that_is_loaded_already_gets_the_number(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, quota: float | None, environ: str | None, expected: int
) -> None:
    host = Host(set(range(8)), set(range(8)))
    monkeypatch.setattr(os, "sched_getaffinity", host.affinity)
    monkeypatch.setattr(cores, "cpu_quota", lambda root: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environ is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environ)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        use_threads(World(), threads)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
