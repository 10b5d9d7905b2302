"""Which file of timings a build reads, and which it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from opt_trt.backends.inductor.builder import target
from opt_trt.config.build_flags import BuildConfig
from opt_trt.errors import UserError
from opt_trt.plugins.tune.timing import TimingCache

KEPT = {"d | p": {"x": 300.0}}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(target, "cache_dir", lambda: tmp_path)
    TimingCache("d", dict(KEPT)).save(tmp_path / "timing.cache")
    return tmp_path / "timing.cache"


def config(tmp_path: Path, **flags: object) -> BuildConfig:
    return BuildConfig(checkpoint_dir="c", output_timing_cache=str(tmp_path / "model.cache"), **flags)  # type: ignore[arg-type]


def test_timings_of_earlier_builds_are_reused(own: Path, tmp_path: Path) -> None:
    with target.timings(config(tmp_path), "d") as cache:
        assert cache.times == KEPT


def test_retime_reads_no_timings_and_replaces_the_users(own: Path, tmp_path: Path) -> None:
    with target.timings(config(tmp_path, retime=True), "d") as cache:
        assert cache.times == {}
        cache.times["d | p"] = {"x": 16.0}
    assert TimingCache.load("d", own).times == {"d | p": {"x": 16.0}}


def test_retime_beside_timings_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--retime reads no timings"):
        config(tmp_path, retime=True, input_timing_cache="x")


def test_timings_of_a_busy_machine_are_named_and_stay_out_of_the_users(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with target.timings(config(tmp_path), "d") as cache:
        cache.times["d | q"] = {"x": 1.0}
        cache.spoilt.add("d | q")
        cache.num_timed = 5
    assert TimingCache.load("d", own).times == KEPT
    [line] = capsys.readouterr().err.splitlines()
    assert "while 1 problem was timed" in line and "build again with --retime" in line


def test_times_of_a_file_that_was_given_are_settled(own: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.cache"
    TimingCache("d", dict(KEPT)).save(given)
    with target.timings(config(tmp_path, input_timing_cache=str(given)), "d") as cache:
        assert cache.settled == {"d | p"}
    with target.timings(config(tmp_path), "d") as cache:
        assert cache.settled == frozenset()


def test_a_few_spoilt_timings_are_not_worth_a_line(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with target.timings(config(tmp_path), "d") as cache:
        cache.spoilt.add("d | q")
        cache.num_timed = 37
    assert capsys.readouterr().err == ""
