"""Ranks of a host share its cores."""

from __future__ import annotations

import os

import pytest

from opt_trt.runtime.world import World
from opt_trt.runtime.world.cores import SPIN_COUNT, share_cores


class Host:
    """Which cores this process and its launcher may use."""

    def __init__(self, own: set[int], launchers: set[int]) -> None:
        self.own = own
        self._launchers = launchers

    def affinity(self, pid: int) -> set[int]:
        return self._launchers if pid else self.own

    def set_affinity(self, pid: int, cores: list[int]) -> None:
        self.own = set(cores)


def share(monkeypatch: pytest.MonkeyPatch, host: Host, world: World, **environ: str) -> str | None:
    monkeypatch.setattr(os, "sched_getaffinity", host.affinity)
    monkeypatch.setattr(os, "sched_setaffinity", host.set_affinity)
    share_cores(world, environ)
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
