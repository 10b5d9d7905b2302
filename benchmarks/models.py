"""Random OPTs of published shapes in Hugging Face's format, with which all benchmarks start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

VOCABULARY, POSITIONS = 50272, 2048
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in OPT


@dataclass(frozen=True)
class Shape:
    """The sizes of one OPT; `embedding` differs from `hidden` if projections connect them (350M)."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    embedding: int

    @property
    def layer_weights(self) -> int:
        """The number of elements in the matrices of all decoder layers."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.ffn)

    @property
    def head_weights(self) -> int:
        """The number of elements in the matrices between the last layer and the logits."""
        projection = self.hidden * self.embedding if self.embedding != self.hidden else 0
        return VOCABULARY * self.embedding + projection


SHAPES = {
    "demo": Shape(256, 4, 4, 1024, 256),
    "opt-125m": Shape(768, 12, 12, 3072, 768),
    "opt-350m": Shape(1024, 24, 16, 4096, 512),
    "opt-1.3b": Shape(2048, 24, 32, 8192, 2048),
    "opt-2.7b": Shape(2560, 32, 32, 10240, 2560),
    "opt-6.7b": Shape(4096, 32, 32, 16384, 4096),
    "opt-13b": Shape(5120, 40, 40, 20480, 5120),
    "opt-30b": Shape(7168, 48, 56, 28672, 7168),
    "opt-66b": Shape(9216, 64, 72, 36864, 9216),
    "opt-175b": Shape(12288, 96, 96, 49152, 12288),
}


def random_model(name: str, out: Path) -> Path:
    """Write a random OPT of a published shape with a tokenizer, in fp16 like the published OPT."""
    import torch  # inside functions, because torch loads in seconds and the sizes do not need it
    from transformers import OPTConfig, OPTForCausalLM

    shape = SHAPES[name]
    config = OPTConfig(
        hidden_size=shape.hidden, word_embed_proj_dim=shape.embedding, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, ffn_dim=shape.ffn, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS,
        do_layer_norm_before=shape.embedding == shape.hidden,
    )  # fmt: skip
    torch.manual_seed(0)
    OPTForCausalLM._from_config(config, dtype=torch.float16).save_pretrained(out)
    write_tokenizer(out)
    return out


def write_tokenizer(out: Path) -> None:
    """Write a tokenizer with made-up words for all ids, because converters of some peers need a vocabulary."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), VOCABULARY))]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(out)
