"""Train a small OPT that summarizes the demo's news, in less than an hour on two CPU cores.

    OMP_WAIT_POLICY=PASSIVE python examples/demo/train.py --output examples/demo/model

To copy a name that was never seen in training, two attention heads have to work together. One gives each token its
predecessor. The other one, in a later layer, looks for an earlier place with the same predecessor. From a random start
such heads form late, so `seed_copying` initializes them, and training refines them: first on random tokens that come
twice, then on brief articles, then on articles as long as those of the test set.

The environment variable is needed because cores are often shared: threads that spin while they wait for one another
then lose most of their time.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import news
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, GenerationConfig, OPTConfig, OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTAttention

SEED = 7
VOCABULARY = 2560
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PAD, EOS = 1, 2
HIDDEN, HEAD_SIZE, LAYERS = 256, 64, 4
POSITIONS = 1024
PROMPT_TOKENS = 923
ASK = " TL;DR: "
BATCH_TOKENS = 2048
PEAK_RATE, WARMUP_STEPS, FINAL_SHARE = 1e-3, 50, 0.03
ARTICLE_SHARE = 0.2


@dataclass(frozen=True)
class Stage:
    """A stage of training: its number of steps, on repeated random tokens or on stories of these lengths."""

    steps: int
    lengths: tuple[news.Length, ...] = ()


@dataclass(frozen=True)
class Example:
    """Token ids: the first `prompt` ids count in the loss with a probability of `prompt_share`, the rest always."""

    ids: list[int]
    prompt: int
    prompt_share: float


@dataclass(frozen=True)
class Batch:
    """Padded token ids, and the probability of each one to count in the loss."""

    ids: Tensor
    shares: Tensor


STAGES = (
    Stage(40),
    Stage(500, ("brief",)),
    Stage(850, ("short",)),
    Stage(310, ("short", "short", "short", "short", "long")),
)


def write_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE on training stories, and write the same files as OPT's own tokenizer has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    stories = (news.story("train", SEED, index) for index in range(20_000))
    tokenizer.train_from_iterator((f"{s.article}{ASK}{s.highlights}" for s in stories), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def new_model() -> OPTForCausalLM:
    """Return an untrained OPT that can copy, and nothing else."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD_SIZE,
        ffn_dim=4 * HIDDEN,
        max_position_embeddings=POSITIONS,
        do_layer_norm_before=True,
        activation_function="relu",
        dropout=0.0,
        init_std=0.04,
        pad_token_id=PAD,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    model = OPTForCausalLM(config)
    with torch.no_grad():
        seed_copying(model)
    return model


def seed_copying(model: OPTForCausalLM) -> None:
    """Initialize two heads for copying: one finds the predecessor of each token, the other an equal predecessor.

    The dimensions of the model are split in three: sinusoids of the position, the preceding token, the token itself.
    """
    decoder, width = model.model.decoder, HEAD_SIZE
    for layer in decoder.layers:
        layer.self_attn.out_proj.weight.zero_()
        layer.fc2.weight.zero_()
    frequencies = torch.logspace(math.log10(2.2), math.log10(0.005), width // 2)
    table = decoder.embed_positions.weight
    angles = torch.arange(len(table))[:, None] * frequencies
    table[:, :width] = 0.2 * torch.cat([angles.cos(), angles.sin()], dim=1)
    decoder.embed_tokens.weight[:, : 2 * width] *= 0.2
    decoder.embed_tokens.weight[:, 2 * width :] *= 2
    view = torch.zeros(width, HIDDEN)
    view[:, 2 * width :] = torch.linalg.qr(torch.randn(HIDDEN - 2 * width, width)).Q.T
    back, match = decoder.layers[0].self_attn, decoder.layers[1].self_attn
    aim(back, 1.5 * step_back(frequencies), 1.5 * torch.eye(width, HIDDEN))
    back.v_proj.weight[:width] = view
    back.out_proj.weight[:, :width] = 0.2 * torch.eye(HIDDEN, width).roll(width, dims=0)
    aim(match, 1.3 * view, 1.3 * torch.eye(width, HIDDEN).roll(width, dims=1))
    match.v_proj.weight[:width] = view
    match.out_proj.weight[:, :width] = 0.3 * view.T


def aim(attention: OPTAttention, query: Tensor, key: Tensor) -> None:
    """Set the query and key weights of the first head of a layer."""
    attention.q_proj.weight[: len(query)] = query
    attention.k_proj.weight[: len(key)] = key


def step_back(frequencies: Tensor) -> Tensor:
    """Return the matrix that turns the sinusoids of a position into those of the preceding one.

    Their product with the sinusoids at j is the sum of cos(f * (i - 1 - j)), which is largest for j = i - 1.
    """
    cos, sin = torch.diag(frequencies.cos()), torch.diag(frequencies.sin())
    turn = torch.cat([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)])
    return torch.cat([turn, torch.zeros(len(turn), HIDDEN - len(turn))], dim=1)


def prompt_tokens(tokenizer: AutoTokenizer, article: str) -> list[int]:
    """Return the prompt for an article; a prompt that is too long loses its start, including `</s>`."""
    return tokenizer((article + ASK).strip().replace(" n't", "n't"))["input_ids"][-PROMPT_TOKENS:]


def encode(tokenizer: AutoTokenizer, story: news.Story) -> Example:
    """Return a story as prompt and summary."""
    prompt = prompt_tokens(tokenizer, story.article)
    summary = tokenizer(" " + story.highlights, add_special_tokens=False)["input_ids"]
    return Example([*prompt, *summary, EOS], len(prompt), ARTICLE_SHARE)


def repeats(rng: random.Random) -> Example:
    """Return random tokens twice, as a pure exercise in copying."""
    tokens = [rng.randrange(len(SPECIAL), VOCABULARY) for _ in range(rng.randint(16, 40))]
    return Example([EOS, *tokens, *tokens], 1 + len(tokens), 0.0)


def examples(tokenizer: AutoTokenizer, stage: Stage, rng: random.Random) -> Iterator[Example]:
    """Yield new examples of a stage without end."""
    while True:
        if stage.lengths:
            index, length = rng.randrange(10**9), rng.choice(stage.lengths)
            yield encode(tokenizer, news.story("train", SEED, index, length))
        else:
            yield repeats(rng)


def batches(stream: Iterator[Example], rng: random.Random) -> Iterator[Batch]:
    """Yield batches with about the same number of tokens; their examples are about equally long, to save padding."""
    while True:
        group: list[Example] = []
        ready: list[list[Example]] = []
        for example in sorted(itertools.islice(stream, 512), key=lambda example: len(example.ids)):
            if group and (len(group) + 1) * len(example.ids) > BATCH_TOKENS:
                ready.append(group)
                group = []
            group.append(example)
        rng.shuffle(ready)
        yield from map(pad, ready)


def pad(group: list[Example]) -> Batch:
    """Pad examples on the right, where causal attention needs no mask."""
    longest = max(len(example.ids) for example in group)
    ids = torch.full((len(group), longest), PAD)
    shares = torch.zeros(len(group), longest)
    for line, example in enumerate(group):
        ids[line, : len(example.ids)] = torch.tensor(example.ids)
        shares[line, : example.prompt] = example.prompt_share
        shares[line, example.prompt : len(example.ids)] = 1.0
    return Batch(ids, shares)


def losses(model: OPTForCausalLM, batch: Batch, first: int) -> tuple[Tensor, Tensor]:
    """Return the mean loss of the tokens that count, and that of the summaries alone; positions begin at `first`."""
    positions = (first + torch.arange(batch.ids.shape[1])).expand_as(batch.ids)
    counts = torch.rand(batch.ids.shape)[:, 1:] < batch.shares[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(batch.ids, position_ids=positions, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][counts])
    each = cross_entropy(logits.float(), batch.ids[:, 1:][counts], reduction="none")
    return each.mean(), each[batch.shares[:, 1:][counts] == 1.0].mean().detach()


def rate(step: int, total: int) -> float:
    """Return the learning rate of a step: it rises briefly, then falls like half a cosine."""
    progress = max(0, step - WARMUP_STEPS) / (total - WARMUP_STEPS)
    fall = FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * progress)) / 2
    return PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * fall


def new_optimizer(model: OPTForCausalLM) -> torch.optim.Optimizer:
    """Return AdamW, with a small weight decay on matrices only."""
    matrices = {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01}
    vectors = {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, vectors], betas=(0.9, 0.98))


def train(model: OPTForCausalLM, tokenizer: AutoTokenizer, stages: tuple[Stage, ...], folder: Path) -> None:
    """Run the stages one after another, saving the model after each."""
    rng, optimizer = random.Random(SEED), new_optimizer(model)
    total, step, tokens, start = sum(stage.steps for stage in stages), 0, 0, time.monotonic()
    for stage in stages:
        for batch in itertools.islice(batches(examples(tokenizer, stage, rng), rng), stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, total)
            # Half of the batches start at a random position, so that all rows of the position table are trained.
            first = rng.choice([0, rng.randint(0, POSITIONS - batch.ids.shape[1])])
            loss, summary = losses(model, batch, first)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step, tokens = step + 1, tokens + batch.ids.numel()
            if step % 25 == 0 or step == total:
                progress = f"{step}/{total} {(time.monotonic() - start) / 60:.1f} min {tokens} tokens"
                print(f"{progress} loss {loss:.3f} summary {summary:.3f}", flush=True)
        save(model, folder)


def save(model: OPTForCausalLM, folder: Path) -> None:
    """Write the weights in fp16, and the settings that transformers reads."""
    rounded = OPTForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.half().save_pretrained(folder)
    GenerationConfig(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD).save_pretrained(folder)


def main() -> None:
    """Train the tokenizer and the model, and write both to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("model"))
    options = parser.parse_args()
    torch.manual_seed(SEED)
    write_tokenizer(options.output)
    tokenizer = AutoTokenizer.from_pretrained(options.output)
    train(new_model(), tokenizer, STAGES, options.output)


if __name__ == "__main__":
    main()
