"""`LLM.generate_ids` takes and returns tensors as transformers' generate does. (Over an engine: tests/engine.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, TextStreamer

from opt_trt import SamplingParams
from opt_trt.errors import UserError
from tests.unit._decoders import SumDecoder, spec
from tests.unit._llms import letters, sums
from tests.unit._tokenizers import ids_of

PADDED = torch.tensor([[1, 1, 3], [4, 5, 6]])  # 1 is the pad id


def test_prompts_are_in_front_and_finished_rows_are_filled_with_the_pad_id() -> None:
    with sums() as llm:
        out = llm.generate_ids(PADDED, max_new_tokens=4, eos_token_id=14)
    assert out.dtype == torch.int64
    assert out.tolist() == [[1, 1, 3, 3, 6, 12, 8], [4, 5, 6, 15, 14, 1, 1]]


def test_the_mask_says_what_is_padding() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with sums() as llm:
        out = llm.generate_ids(PADDED, attention_mask=mask, max_new_tokens=2, eos_token_id=None)
    assert out[:, 3:].tolist() == [[4, 8], [15, 14]]


def test_a_pad_id_that_ends_sequences_is_no_padding_in_prompts() -> None:
    with sums() as llm:
        out = llm.generate_ids(torch.tensor([[2, 3]]), max_new_tokens=3, pad_token_id=2)
    assert out.tolist() == [[2, 3, 5, 10, 4]]


def test_rows_are_repeated_for_several_outputs_and_a_seed_decides() -> None:
    drawn = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3, "eos_token_id": None}
    with sums() as llm:
        first, again = (llm.generate_ids(PADDED, seed=3, **drawn) for _ in range(2))
        other = llm.generate_ids(PADDED, seed=4, **drawn)
    assert first.shape == (6, 8) and first[:3, :3].tolist() == [[1, 1, 3]] * 3
    assert len({tuple(row) for row in first[:3].tolist()}) == 3
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_penalty_alpha_is_contrastive_search() -> None:
    with sums() as llm:
        greedy = llm.generate_ids(PADDED, max_new_tokens=5, eos_token_id=None)
        out = llm.generate_ids(PADDED, max_new_tokens=5, eos_token_id=None, penalty_alpha=0.9, top_k=3)
        params = SamplingParams(max_tokens=5, ignore_eos=True, penalty_alpha=0.9, top_k=3)
        rows = llm.generate([[3], [4, 5, 6]], params)
    assert out[:, 3:].tolist() == [one.outputs[0].token_ids for one in rows]
    assert not torch.equal(out, greedy)


def test_all_rows_run_in_one_batch() -> None:
    decoder = SumDecoder()
    with sums(decoder) as llm:
        llm.generate_ids(torch.full((4, 2), 3), max_new_tokens=3, eos_token_id=None)
    assert [inputs.kv_lens.shape[0] for inputs in decoder.steps] == [4, 4, 4]


@pytest.mark.parametrize(
    ("ids", "options", "says"),
    [
        (
            PADDED,
            {"max_new_tokens": 2, "num_beam_groups": 2},
            "generate_ids has no num_beam_groups=2: call generate with",
        ),
        (PADDED, {"max_new_token": 2}, r"generate_ids has no option max_new_token; did you mean max_new_tokens\?"),
        (PADDED, {"max_new_tokens": 2.5}, "^max_new_tokens must be an integer, found 2.5"),
        (PADDED, {"max_length": 2.5}, "^max_length must be an integer, found 2.5"),
        (PADDED, {"max_length": 3}, "max_length=3 leaves no new token behind 3 of the prompt; raise it"),
        (PADDED, {"num_beams": 2.0}, "^num_beams must be an integer, found 2.0"),
        (PADDED, {"logits_processor": [print]}, "generate_ids has no logits_processor=.*: give logit_bias"),
        (PADDED, {"output_scores": True}, "tells log-probabilities"),
        (PADDED, {"attention_mask": [[1, 2, 1], [1, 1, 1]]}, "attention_mask must be 1 for tokens and 0 for padding"),
        (PADDED, {"attention_mask": [[1.0, float("nan"), 1.0]] * 2}, "attention_mask must be 1 for tokens and 0"),
        (PADDED, {"streamer": TextStreamer(None)}, "streamer takes one output, found 2 rows, num_return_sequences=1"),
        (PADDED, {"streamer": 5}, "streamer must have put and end, as transformers' have, found 5"),
        (PADDED, {"generation_config": 5}, "generation_config must be a GenerationConfig or a dictionary, found 5"),
        (PADDED, {"stop_strings": "x"}, "a stop string needs a tokenizer: give tokenizer=DIRECTORY"),
        (None, {}, "generate_ids needs input_ids: integers of shape"),
        ([[1, 2], [3]], {}, "input_ids must be rows of one length, padded on the left, found"),
        ("ab", {}, "input_ids must be a tensor or lists, found 'ab'"),
        ([[True, False]], {}, "input_ids must be integers of shape .*, found torch.bool of"),
        ([[1.5]], {}, "input_ids must be integers of shape .*, found torch.float32 of"),
        (PADDED, {"max_new_tokens": 2, "length_penalty": 2.0}, "length_penalty would change nothing without num_beams"),
        (
            PADDED,
            {"max_new_tokens": 2, "num_beams": 2, "do_sample": True},
            "do_sample=True and num_beams=2 are different ways",
        ),
        (PADDED, {"max_new_tokens": 2, "num_beams": 2, "early_stopping": "soon"}, "must be False, True or .*soon"),
        (PADDED, {"max_new_tokens": 2, "num_beams": 0}, "^num_beams must be at least 1, found 0"),
        (PADDED, {"max_new_tokens": 2, "num_beams": 2, "num_return_sequences": 3}, "or at most num_beams, found 3"),
        (PADDED, {"max_new_tokens": 2, "top_p": 0.9}, "top_p would change nothing without do_sample=True"),
        (
            PADDED,
            {"max_new_tokens": 2, "penalty_alpha": 0.6, "do_sample": True},
            "do_sample=True and penalty_alpha=0.6 are",
        ),
        (
            PADDED,
            {"max_new_tokens": 2, "penalty_alpha": 0.6},
            "asks for 50 candidates, .* the engine takes 4; lower top_k",
        ),
        (PADDED, {"max_new_tokens": 2, "penalty_alpha": 0.6, "top_k": 4, "top_p": 0.9}, "top_p would change nothing"),
        (PADDED, {"max_new_tokens": 2, "num_return_sequences": 2}, "num_return_sequences must be 1, or more with do_"),
        (
            PADDED.float(),
            {"max_new_tokens": 2},
            r"input_ids must be integers of shape \[rows, tokens\], found torch.fl",
        ),
        (PADDED[0], {"max_new_tokens": 2}, "input_ids must be integers of shape"),
        (
            PADDED.flip(1),
            {"max_new_tokens": 2},
            "row 0 of input_ids has padding behind its first token; pad on the left",
        ),
        (PADDED, {"max_new_tokens": 2, "attention_mask": torch.ones(2, 2)}, "attention_mask must have the shape of"),
        (torch.full((2, 3), 1), {"max_new_tokens": 2}, "prompt 0 is empty"),
        (PADDED, {"max_new_tokens": 99}, "the engine takes 24; lower max_new_tokens"),
    ],
)
def test_what_cannot_be_done_is_named(ids: torch.Tensor, options: dict, says: str) -> None:
    with sums() as llm, pytest.raises(UserError, match=says):
        llm.generate_ids(ids, **options)


ALONE = torch.tensor([[3, 4, 5]])


@pytest.mark.parametrize(
    "ids", [ALONE.tolist(), ALONE.numpy(), ((3, 4, 5),), ALONE.int(), [ALONE[0].numpy()]], ids=repr
)
def test_lists_and_arrays_are_taken_for_tensors(ids: object) -> None:
    with sums() as llm:
        expected = llm.generate_ids(ALONE, max_new_tokens=2, eos_token_id=None)
        assert torch.equal(llm.generate_ids(ids, max_new_tokens=2, eos_token_id=None), expected)
        assert torch.equal(llm.generate_ids(inputs=ids, max_new_tokens=2, eos_token_id=None), expected)
        masked = llm.generate_ids(ids, [[1, 1, 1]], max_new_tokens=2, eos_token_id=None)
        assert torch.equal(masked, expected)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 20),
        ({"max_length": 8}, 5),
        ({"max_length": 8, "max_new_tokens": 2}, 2),
        ({"generation_config": GenerationConfig(max_new_tokens=4)}, 4),
        ({"generation_config": GenerationConfig(max_length=7)}, 4),
        ({"generation_config": GenerationConfig(max_new_tokens=4), "max_length": 5}, 2),
        ({"attention_mask": GenerationConfig(max_new_tokens=4)}, 4),  # in its place for transformers
        ({"generation_config": {"max_new_tokens": 4}, "max_new_tokens": 3}, 3),
        ({"max_new_tokens": None, "use_cache": True, "logits_processor": None, "tokenizer": None}, 20),
    ],
    ids=str,
)
def test_lengths_are_given_in_all_of_transformers_ways(options: dict, count: int) -> None:
    with sums(SumDecoder(spec(max_seq_len=30))) as llm:
        assert llm.generate_ids(ALONE, eos_token_id=None, **options).shape == (1, 3 + count)


def test_the_default_length_ends_where_the_engine_does() -> None:
    with sums(SumDecoder(spec(max_seq_len=9))) as llm:
        assert llm.generate_ids(ALONE, eos_token_id=None).shape == (1, 9)


def test_a_generation_config_gives_what_is_not_given_by_name() -> None:
    config = GenerationConfig(do_sample=True, top_k=5, temperature=0.7, max_new_tokens=4, eos_token_id=None)
    with sums() as llm:
        by_name = {"do_sample": True, "top_k": 5, "temperature": 0.7, "max_new_tokens": 4}
        expected = llm.generate_ids(ALONE, seed=3, **by_name)
        assert torch.equal(llm.generate_ids(ALONE, generation_config=config, seed=3), expected)
        greedy = llm.generate_ids(ALONE, generation_config={"eos_token_id": 15, "pad_token_id": 0})
        assert greedy.tolist() == llm.generate_ids(ALONE, eos_token_id=15, pad_token_id=0).tolist()


class Heard:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append("end")


def test_a_streamer_gets_the_prompt_and_each_token() -> None:
    streamer = Heard()
    with sums() as llm:
        ids = llm.generate_ids(ALONE, streamer=streamer, max_new_tokens=3, eos_token_id=None)[0].tolist()
    assert streamer.heard == [[[3, 4, 5]], *([i] for i in ids[3:]), "end"]


def test_a_dictionary_is_returned_when_asked_for() -> None:
    with sums() as llm:
        answer = llm.generate_ids(ALONE, max_new_tokens=3, return_dict_in_generate=True)
        assert torch.equal(answer.sequences, llm.generate_ids(ALONE, max_new_tokens=3))


def test_stop_strings_end_a_row_and_stay_in_it(tmp_path: Path) -> None:
    with letters(tmp_path) as llm:
        ids = llm.generate_ids([[*ids_of("ab")]], stop_strings=["de", "zz"], max_new_tokens=9)
        assert ids.tolist() == [[*ids_of("abcde")]]


@pytest.mark.parametrize("ends", [[14], [2, 14], (14, 5), torch.tensor([14, 99]), 14])
def test_any_of_several_end_ids_ends_a_row(ends: object) -> None:
    with sums() as llm:
        out = llm.generate_ids(PADDED, max_new_tokens=4, eos_token_id=ends)
    assert out.tolist()[1] == [4, 5, 6, 15, 14, 1, 1]


@pytest.mark.parametrize("none", [None, [], -1, 99])
def test_ids_that_never_occur_end_nothing_and_ban_nothing(none: object) -> None:
    with sums() as llm:
        out = llm.generate_ids(PADDED, max_new_tokens=4, min_new_tokens=2, eos_token_id=none)
    assert out.tolist() == [[1, 1, 3, 3, 6, 12, 8], [4, 5, 6, 15, 14, 12, 8]]


def test_min_new_tokens_bans_every_end_id() -> None:
    with sums() as llm:
        out = llm.generate_ids(PADDED[1:], max_new_tokens=3, min_new_tokens=3, eos_token_id=[15, 14])
    assert not {14, 15} & set(out[0, 3:].tolist())


def test_a_pad_id_among_the_end_ids_is_no_padding_in_prompts() -> None:
    with sums() as llm:
        out = llm.generate_ids(torch.tensor([[2, 3]]), max_new_tokens=3, pad_token_id=2, eos_token_id=[9, 2])
    assert out.tolist() == [[2, 3, 5, 10, 4]]


def test_equal_rows_draw_tokens_of_their_own_by_one_seed() -> None:
    drawn = {"max_new_tokens": 5, "do_sample": True, "eos_token_id": None, "seed": 3}
    with sums() as llm:
        rows = llm.generate_ids(torch.tensor([[4, 5, 6]] * 4), **drawn)
        one = llm.generate_ids(torch.tensor([[4, 5, 6]]), **drawn)
        again = llm.generate_ids(torch.tensor([[4, 5, 6]] * 4), **drawn)
    assert len({tuple(row) for row in rows.tolist()}) == 4
    assert torch.equal(rows[:1], one) and torch.equal(rows, again)
