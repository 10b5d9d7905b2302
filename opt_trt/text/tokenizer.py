"""Turn strings into token ids and back with the tokenizer of the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from opt_trt.checkpoint.tokenizer_files import holds_tokenizer
from opt_trt.errors import UserError, spelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Decodes(Protocol):
    """Anything that turns ids into readable text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the ids as text."""
        ...


class Tokenizer:
    """OPT's byte-level BPE. A prompt begins with `</s>` (`bos_id`) unless special tokens are switched off.

    transformers adds the `</s>` only if `tokenizer_config.json` says `add_bos_token`, and some OPT checkpoints were
    published without that line. This class adds it unless the file says `false`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...], skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._skip_special_tokens = skip_special_tokens
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int | None = tokenizer.pad_token_id

    def encode(self, text: str, max_length: int) -> tuple[int, ...]:
        """Return at most `max_length` ids: the `</s>` if there is one, then the end of the text (cut on the left)."""
        ids = self.encode_word(text)
        room = max_length - len(self._prefix)
        return (*self._prefix, *ids[max(0, len(ids) - max(0, room)) :])[:max_length]

    def encode_word(self, text: str) -> tuple[int, ...]:
        """Return all ids of a piece of text, without a `</s>` before it."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def verbatim(self) -> Tokenizer:
        """Return the same tokenizer, but with special tokens in its texts."""
        return Tokenizer(self._tokenizer, self._prefix, skip_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens and ids beyond the vocabulary (the table's padding) are empty."""
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


def load_tokenizer(directory: Path | str, add_special_tokens: bool = True) -> Tokenizer:
    """Load the tokenizer of a directory. Nothing is downloaded, and no code in the directory is run."""
    directory = Path(directory)
    _check_files(directory)
    try:
        tokenizer = _load(directory)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions for damaged files
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"the tokenizer in {directory} cannot be read ({reason[0]}); fetch its files again") from error
    if not add_special_tokens:
        return Tokenizer(tokenizer, ())
    if tokenizer.bos_token_id is None:
        raise UserError(
            f"the tokenizer in {directory} names no bos_token to put before a prompt; "
            f"add it to tokenizer_config.json or give {spelled('no_add_special_tokens')}"
        )
    return Tokenizer(tokenizer, (tokenizer.bos_token_id,) if _adds_bos(directory) else ())


def _check_files(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(
            f"expected a tokenizer in {directory}, found no such directory; check {spelled('tokenizer_dir')}"
        )
    if not holds_tokenizer(directory):
        raise UserError(
            f"{directory} holds no tokenizer: expected vocab.json and merges.txt, or tokenizer.json; "
            f"give {spelled('tokenizer_dir')}, the directory of the Hugging Face model"
        )


def _load(directory: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # takes seconds to import, and is not needed for token ids

    return AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, padding_side="left", truncation_side="left"
    )


def _adds_bos(directory: Path) -> bool:
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return True
    settings = json.loads(path.read_text(encoding="utf-8"))
    return settings.get("add_bos_token") is not False
