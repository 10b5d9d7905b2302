"""Sessions on several ranks: followers do what the leader does, and only the leader is heard."""

from __future__ import annotations

import torch

from tests.ranks.conftest import StartRanks

PROGRAM = ("-m", "tests.ranks._sessions", "--scenario")


def test_ranks_do_as_the_leader_does_and_give_the_outputs_of_one(start_ranks: StartRanks, tmp_path) -> None:
    """Two sessions, beams, draws, prefix reuse, sequences that start over, streams: three ranks, caches alike."""
    alone = start_ranks(1, *PROGRAM, "serve", "--directory", tmp_path)
    assert alone.wait() == 0
    run = start_ranks(3, *PROGRAM, "serve", "--directory", tmp_path)
    assert run.wait() == 0, run.errors
    assert run.output == alone.output and "follower" not in run.output
    leader, *followers = [torch.load(tmp_path / f"caches{rank}.pt") for rank in range(3)]
    assert [[layer.shape[0] for layer in cache] for cache in leader] == [[36, 36], [15, 15]]  # blocks: the least
    assert all(layer.any() for cache in leader for layer in cache)
    for follower in followers:
        assert all(
            torch.equal(mine, theirs)
            for cache, other in zip(leader, follower, strict=True)
            for mine, theirs in zip(cache, other, strict=True)
        )
    assert run.leftovers() == []


def test_a_step_after_the_end_of_the_world_is_refused(start_ranks: StartRanks, tmp_path) -> None:
    run = start_ranks(2, *PROGRAM, "late", "--directory", tmp_path)
    assert run.wait() == 0, run.stderr
    assert (
        run.output == "generated\nrefused: the ranks have ended with the main thread; wait for requests before that\n"
    )
    assert run.leftovers() == []


def test_a_session_that_the_leader_closes_is_freed_on_all_ranks(start_ranks: StartRanks, tmp_path) -> None:
    run = start_ranks(3, *PROGRAM, "close", "--directory", tmp_path)
    assert run.wait() == 0, run.stderr
    assert run.output == "generated\n" * 2
    assert {file.name for file in tmp_path.glob("freed*")} == {f"freed{s}-{r}" for s in range(2) for r in range(3)}
    assert run.leftovers() == []
