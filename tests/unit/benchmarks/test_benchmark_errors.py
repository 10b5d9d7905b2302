"""The benchmark's column of errors: the comparison of logits, and the requests for them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import engine
import errors
import numpy as np
import pytest
import torch
from costs import Computes
from engine import EngineRunner
from errors import EMBEDDING, PROMPTS, Reference, compute_reference, errors_of, is_of_other_weights
from peers import PEERS, Peer, PeerVariant
from peers.environment import PeerUnavailable
from peers.process import PeerProcess
from safetensors.torch import save_file
from transformers import OPTForCausalLM

from opt_trt.runtime.request import Result, TokenLogProbs
from tests.unit._models import Model
from tests.unit._sessions import AnsweringSession

ROOT = Path(__file__).parents[3]
PEERS_DIR = ROOT / "benchmarks" / "peers"
REFERENCE = Reference([[5, 6], [7, 8]], np.array([[1, -1], [3, -3]], np.float32))


def test_the_error_is_the_norm_of_the_difference_by_that_of_the_reference():
    assert REFERENCE.error(REFERENCE.logits) == 0
    assert REFERENCE.error(np.array([[1.1, -1.1], [3, -3]])) == pytest.approx((0.02 / 20) ** 0.5)


def test_a_number_added_to_a_row_is_no_error():
    assert REFERENCE.error(REFERENCE.logits + np.array([[-10.0], [4.0]])) == pytest.approx(0, abs=1e-12)


class Echo:
    """A runner that returns given numbers, or fails."""

    def __init__(self, logits):
        self._logits = logits

    def logits(self, prompts):
        assert prompts == REFERENCE.prompts
        if self._logits is None:
            raise PeerUnavailable("ended: out of memory")
        return self._logits


def test_runners_that_end_when_asked_join_the_absent():
    absent = {"gone": "not installed"}
    found = errors_of({"exact": Echo(REFERENCE.logits), "dead": Echo(None)}, REFERENCE, absent)
    assert found == {"exact": 0.0}
    assert absent == {"gone": "not installed", "dead": "ended: out of memory"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_engine_of_other_weights_is_told_by_its_embedding(tmp_path, dtype):
    hf = tmp_path / "hf"
    hf.mkdir()
    embedding = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).half()
    save_file({"of.another.shard": torch.zeros(1)}, hf / "model-1.safetensors")
    save_file({EMBEDDING: embedding}, hf / "model-2.safetensors")
    weights = tmp_path / "rank0.weights.safetensors"
    absent: dict[str, str] = {}
    save_file({"transformer.vocab_embedding.weight": embedding.to(dtype)}, weights)
    assert not is_of_other_weights(tmp_path, hf, absent) and not is_of_other_weights(None, hf, absent) and not absent
    save_file({"transformer.vocab_embedding.weight": -embedding.to(dtype)}, weights)
    assert is_of_other_weights(tmp_path, hf, absent)
    assert absent == {"error": f"{tmp_path} is of other weights than {hf}"}


def test_nobody_is_asked_without_a_reference():
    assert errors_of({"dead": Echo(None)}, None, {}) == {}


class Oracle:
    """A fake of a peer's process that records its end."""

    closed = 0

    def __init__(self, choice, model, cache, log):
        assert (choice, model) == (PeerVariant("transformers", "float32"), Path("hf"))

    def logits(self, prompts):
        return np.array(prompts, np.float32)

    def close(self):
        Oracle.closed += 1


def test_the_reference_is_transformers_in_float32_and_ended_before_others_come(monkeypatch):
    monkeypatch.setattr(errors, "PeerProcess", Oracle)
    monkeypatch.setattr(Oracle, "closed", 0)
    absent = {}
    reference = compute_reference(Path("hf"), 3, Path("cache"), absent)
    assert reference.logits.shape == (PROMPTS, 3) and not absent
    assert Oracle.closed == 1


def test_a_model_too_large_for_the_reference_is_measured_without_errors(monkeypatch):
    def too_large(*given):
        raise PeerUnavailable("ended: Killed")

    monkeypatch.setattr(errors, "PeerProcess", too_large)
    absent = {}
    assert compute_reference(Path("hf"), 3, Path("cache"), absent) is None
    assert absent == {"error": "transformers:float32 ended: Killed"}


def test_an_engine_built_without_a_flag_for_logits_gives_those_of_the_whole_vocabulary(monkeypatch):
    def answer(request):
        assert (request.max_new_tokens, request.sampling.log_probs) == (1, 3)
        best_first = ((2, -0.25), (0, -1.5), (1, -float(request.prompt_ids[0])))
        return Result(request.prompt_ids, (2,), "length", log_probs=(TokenLogProbs(-0.25, best_first),))

    session = AnsweringSession(SimpleNamespace(vocab_size=3), answer)
    monkeypatch.setattr(engine, "computes", lambda engine_dir: None)
    monkeypatch.setattr(engine, "open_engine", lambda engine_dir, limit: session)
    logits = EngineRunner(Path("engine")).logits([[7, 1], [9, 1]])
    assert logits.tolist() == [[-1.5, -7.0, -0.25], [-1.5, -9.0, -0.25]]


ECHO = """
from array import array
from worker import LoadedModel, run

def open_model(model, variant):
    return LoadedModel({"weights": variant, "head": "int8", "kv_cache": "int8", "activations": "int8"},
                  lambda prompts: prompts, lambda prompts, n: [row[:n] for row in prompts],
                  lambda prompts: array("f", [id / 2 for row in prompts for id in row]))

run(open_model)
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """Start a process that returns its prompts as ids, and half of their values as logits."""
    (tmp_path / "run_echo.py").write_text(ECHO)
    monkeypatch.setitem(PEERS, "echo", Peer("run_echo.py", None, {}))
    monkeypatch.setattr("peers.process.HERE", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PEERS_DIR))
    with closing(PeerProcess(PeerVariant("echo", "int4"), tmp_path, tmp_path, tmp_path / "log")) as process:
        yield process


def test_a_peer_answers_with_logits_and_with_seconds_in_turn(peer):
    assert peer.computes == Computes("int4", "int8", "int8", "int8")
    assert peer.logits([[1, 2, 3], [4, 5, 6]]).tolist() == [[0.5, 1.0, 1.5], [2.0, 2.5, 3.0]]
    assert 0 <= peer.seconds([[1, 2, 3]], 2) < 60
    assert peer.logits([[8]]).tolist() == [[4.0]]


def test_a_peer_that_cannot_answer_ends_with_the_reason(peer):
    with pytest.raises(PeerUnavailable, match="ended: TypeError: "):
        peer.logits([["no id"]])


@pytest.mark.slow
def test_transformers_answers_with_the_logits_of_the_token_after_each_prompt(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PEERS_DIR)
    from run_transformers import open_model

    prompts = [[2, 5, 9], [2, 7, 11]]
    model = OPTForCausalLM.from_pretrained(Model().write(tmp_path / "hf")).eval()
    expected = model(torch.tensor(prompts)).logits[:, -1].detach().numpy()
    found = open_model(str(tmp_path / "hf"), "float32").logits(prompts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # single prompts are summed in another order
