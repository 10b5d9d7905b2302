"""The oracle: greedy unless asked otherwise, padded without effect, and loud about what it cannot load."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, OPTConfig, OPTForCausalLM

from opt_trt.config.sampling import Sampling
from opt_trt.errors import UserError
from opt_trt.evaluate.hf_reference import Decoding, HfReference
from opt_trt.evaluate.summarizer import Demand, TokenIds

VOCAB_SIZE = 48
PROMPTS = [(2, 5, 9, 11, 30, 7, 21), (2, 40), (2, 17, 33, 8)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OPT whose weights are large enough that it does not repeat one token for ever."""
    torch.manual_seed(3)
    config = OPTConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=40, init_std=0.4,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("model")
    OPTForCausalLM(config).save_pretrained(directory)
    return directory


def reference(model_dir: Path, output_len: int = 12, end_id: int | None = None, dtype: str = "fp32") -> HfReference:
    return HfReference(model_dir, dtype, Decoding(output_len, () if end_id is None else (end_id,), pad_id=1))


def test_left_padding_does_not_change_ids(model_dir: Path) -> None:
    hf = reference(model_dir)
    assert hf.generate(PROMPTS) == [hf.generate([prompt])[0] for prompt in PROMPTS]


def test_rows_differ_and_have_the_asked_length(model_dir: Path) -> None:
    outputs = reference(model_dir).generate(PROMPTS)
    assert len(set(outputs)) == 3 and {len(o) for o in outputs} == {12}


def test_output_is_the_argmax_of_each_step(model_dir: Path) -> None:
    model = OPTForCausalLM.from_pretrained(model_dir)
    ids = list(PROMPTS[0])
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert reference(model_dir, output_len=4).generate([PROMPTS[0]]) == [tuple(ids[len(PROMPTS[0]) :])]


def test_generation_stops_at_the_end_token_and_padding_is_dropped(model_dir: Path) -> None:
    free = reference(model_dir).generate(PROMPTS)
    end_id = free[0][4]
    expected = [o[: o.index(end_id) + 1] if end_id in o else o for o in free]
    assert reference(model_dir, end_id=end_id).generate(PROMPTS) == expected
    assert len(expected[0]) < 12


def test_the_end_token_in_front_of_the_prompt_does_not_stop(model_dir: Path) -> None:
    assert len(reference(model_dir, output_len=1, end_id=2).generate([(2, 5)])[0]) == 1


def test_the_models_generation_config_has_no_say(model_dir: Path, tmp_path: Path) -> None:
    expected = reference(model_dir).generate(PROMPTS)
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    GenerationConfig(num_beams=3, repetition_penalty=5.0, min_new_tokens=3).save_pretrained(tmp_path)
    assert reference(tmp_path).generate(PROMPTS) == expected


def with_sampling(model_dir: Path, end_id: int | None = None, **params: Any) -> list[TokenIds]:
    decoding = Decoding(12, () if end_id is None else (end_id,), pad_id=1, sampling=Sampling(**params))
    return HfReference(model_dir, "fp32", decoding).generate(PROMPTS)


@pytest.mark.parametrize(
    "params", [{"temperature": 1.4}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.02}], ids=lambda p: next(iter(p))
)
def test_the_seed_decides_what_it_draws(model_dir: Path, params: dict[str, float]) -> None:
    state = torch.random.get_rng_state()
    drawn = {"top_k": 0, "top_p": 1.0} | params
    first, again, other = (with_sampling(model_dir, random_seed=seed, **drawn) for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("narrow", [{"temperature": 1e-3}, {"top_k": 1}, {"top_p": 1e-5}, {"min_p": 1.0}])
def test_a_narrow_choice_of_its_own_is_greedy(model_dir: Path, narrow: dict[str, float]) -> None:
    assert with_sampling(model_dir, **{"top_k": 0, "top_p": 1.0} | narrow) == reference(model_dir).generate(PROMPTS)


def test_it_takes_the_penalties_it_knows(model_dir: Path) -> None:
    for bare in (with_sampling(model_dir, repetition_penalty=50.0), with_sampling(model_dir, no_repeat_ngram_size=1)):
        assert all(not set(ids) & set(prompt) for ids, prompt in zip(bare, PROMPTS, strict=True))
    end_id = reference(model_dir).generate(PROMPTS)[0][0]
    assert len(with_sampling(model_dir, end_id)[0]) == 1 < 7 <= len(with_sampling(model_dir, end_id, min_length=6)[0])


def test_it_searches_with_beams(model_dir: Path) -> None:
    model = OPTForCausalLM.from_pretrained(model_dir)
    options = {"num_beams": 3, "length_penalty": 0.5}
    for prompt, found in zip(PROMPTS, with_sampling(model_dir, **options, early_stopping=2), strict=True):
        ids = torch.tensor([prompt])
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None,
            pad_token_id=1, early_stopping="never", **options,
        )  # fmt: skip
        assert found == tuple(alone[0, len(prompt) :].tolist())
    assert with_sampling(model_dir, **options) != reference(model_dir).generate(PROMPTS)


def test_nll_is_the_models_own_loss(model_dir: Path) -> None:
    whole = torch.tensor([PROMPTS[0]])
    loss = OPTForCausalLM.from_pretrained(model_dir)(whole, labels=whole).loss.item()
    assert reference(model_dir).mean_nll(PROMPTS[0][:4], PROMPTS[0][4:]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_it_computes_in_the_type_asked_for(model_dir: Path, name: str, dtype: torch.dtype) -> None:
    model = OPTForCausalLM.from_pretrained(model_dir, dtype=dtype)
    ids = torch.tensor([PROMPTS[0]])
    expected = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:]).item()
    nll = reference(model_dir, dtype=name).mean_nll(PROMPTS[0], ())
    assert nll == pytest.approx(expected, rel=1e-6) and math.isfinite(nll)


def test_positions_beyond_the_table_are_refused_before_running(model_dir: Path) -> None:
    hf = reference(model_dir)
    hf.check(Demand(longest_prompt=28, largest_id=47, output_len=12, perplexity=False))
    with pytest.raises(UserError, match="has 40 positions but prompt plus output take 41"):
        hf.check(Demand(longest_prompt=29, largest_id=47, output_len=12, perplexity=False))


def test_another_models_tokenizer_is_noticed(model_dir: Path) -> None:
    with pytest.raises(UserError, match="has 48 tokens but the prompts or --pad_id use id 48"):
        reference(model_dir).check(Demand(longest_prompt=2, largest_id=48, output_len=1, perplexity=False))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a Hugging Face model with config\.json in .*absent"):
        reference(tmp_path / "absent")


def test_missing_weights_are_not_filled_with_random_numbers(model_dir: Path, tmp_path: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((model_dir / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"lacks 16 weights \(model\.decoder\.layers\.2\."):
        reference(tmp_path)


def test_truncated_weights_are_named(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((model_dir / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="transformers cannot load"):
        reference(tmp_path)


def test_pickled_code_does_not_run_and_is_not_recommended(model_dir: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match="transformers cannot load") as refusal:
        reference(tmp_path)
    assert not (tmp_path / "ran").exists() and "weights_only" not in str(refusal.value)


def test_code_in_the_model_directory_does_not_run(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    with pytest.raises(UserError, match="transformers cannot load"):
        reference(tmp_path)
    assert not (tmp_path / "ran").exists()
