"""Turn strings into token ids and back with the tokenizer of the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from opt_trt.checkpoint.tokenizer_files import holds_tokenizer
from opt_trt.errors import UserError, reason, spelled
from opt_trt.host.files import check_regular, nested, read_text
from opt_trt.host.json_file import check_values, read_json
from opt_trt.text.settled import Settling, settling_of
from opt_trt.text.special import SpecialTokens, forget_invented, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMITS = {  # bytes of the files that transformers opens; Gemma's tokenizer.json has 34 MB, OPT's merges.txt 0.5 MB
    "tokenizer.json": 64 << 20,
    "vocab.json": 16 << 20,
    "merges.txt": 16 << 20,
    "tokenizer_config.json": 16 << 20,
    "special_tokens_map.json": 16 << 20,
    "added_tokens.json": 16 << 20,
    "config.json": 16 << 20,
    "chat_template.jinja": 16 << 20,
}
BEYOND = 2**20  # no id of any vocabulary: a model's table may have more rows than its tokenizer has tokens
SAMPLE = "The mayor opened 2 bridges."
LISTED = 3  # the number of directories that an error names


class Decodes(Protocol):
    """Anything that turns ids into readable text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the ids as text."""
        ...

    def num_settled(self, ids: Sequence[int]) -> int:
        """Return how many of the ids have a text that no further ids can change, half characters aside."""
        ...


class Tokenizer:
    """A model's tokenizer. A prompt begins with OPT's `</s>` (`bos_id`) unless special tokens are switched off.

    transformers adds the `</s>` only if `tokenizer_config.json` says `add_bos_token`, and some OPT checkpoints were
    published without that line. This class adds it unless the file says `false`. `prefix` is None if it must be added
    but no file names it: there are no prompts of text then, and all the rest works.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...] | None, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._skip_special_tokens = skip_special_tokens
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int | None = tokenizer.pad_token_id

    @property
    def of_transformers(self) -> PreTrainedTokenizerBase:
        """The same tokenizer, as transformers has it."""
        return self._tokenizer

    def encode(self, text: str, max_length: int) -> tuple[int, ...]:
        """Return at most `max_length` ids: the `</s>` if there is one, then the end of the text (cut on the left)."""
        return self.cut(self.encode_whole(text), max_length)

    def encode_whole(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Return all ids of a prompt: the `</s>` if there is one and it is not switched off, then those of the text."""
        ids = self.encode_word(text)
        return (*self._begin, *ids) if add_special_tokens else ids

    def cut(self, ids: tuple[int, ...], max_length: int) -> tuple[int, ...]:
        """Return at most `max_length` of a prompt's ids: the `</s>` if there is one, then the last ones."""
        begin = self._begin
        room = max(0, max_length - len(begin))
        return (*begin, *ids[max(len(begin), len(ids) - room) :])[:max_length]

    def encode_word(self, text: str) -> tuple[int, ...]:
        """Return all ids of a piece of text, without a `</s>` before it; `UserError` for what is no Unicode text."""
        _require_unicode(text)
        return tuple(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def verbatim(self) -> Tokenizer:
        """Return the same tokenizer, but with special tokens in its texts."""
        return self._verbatim

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens and ids beyond the vocabulary (the table's padding) are empty."""
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def num_settled(self, ids: Sequence[int]) -> int:
        """See `Decodes.num_settled`."""
        return self._settling.count(ids)

    def hides(self, text: str) -> bool:
        """Return whether a text names special tokens, which are left out of decoded texts."""
        return self._skip_special_tokens and self._special.named.search(text) is not None

    def hide(self, text: str) -> str:
        """Return a text without the names of special tokens."""
        return self._special.named.sub("", text)

    @property
    def _begin(self) -> tuple[int, ...]:
        if self._prefix is None:
            raise UserError(
                f"the tokenizer in {self._tokenizer.name_or_path} names no bos_token to put before a prompt; "
                f"add it to tokenizer_config.json or give {spelled('no_add_special_tokens')}"
            )
        return self._prefix

    @cached_property
    def _verbatim(self) -> Tokenizer:
        return Tokenizer(self._tokenizer, self._prefix, skip_special_tokens=False)

    @cached_property
    def _special(self) -> SpecialTokens:
        return special_tokens(self._tokenizer)

    @cached_property
    def _settling(self) -> Settling:
        hidden = self._special.ids if self._skip_special_tokens else frozenset[int]()
        return settling_of(getattr(self._tokenizer, "backend_tokenizer", None), hidden)


def _require_unicode(text: str) -> None:
    """Refuse halves of surrogate pairs, which stand for bytes that are not UTF-8, or come from broken JSON."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"expected text, found {text[error.start]!r} at character {error.start} of {text[:40]!r}, which is no "
            "character (a byte that is not UTF-8?); give UTF-8 text"
        ) from None


def load_tokenizer(directory: Path | str, add_special_tokens: bool = True) -> Tokenizer:
    """Load the tokenizer of a directory. Nothing is downloaded, and no code in the directory is run."""
    directory = Path(directory)
    _check_files(directory)
    try:
        tokenizer = _load(directory)
        _try(tokenizer)
        forget_invented(tokenizer, directory)
    except BaseException as error:  # transformers and tokenizers raise bare Exceptions for damaged files, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"the tokenizer in {directory} cannot be read ({reason(error)}); fetch its files again"
        ) from error
    if not add_special_tokens or not _adds_bos(directory):
        return Tokenizer(tokenizer, ())
    return Tokenizer(tokenizer, None if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,))


def _try(tokenizer: PreTrainedTokenizerBase) -> None:
    """Use everything of a tokenizer that prompts need; any exception may come of damaged settings."""
    tokenizer.decode([*tokenizer.encode(SAMPLE, add_special_tokens=False, verbose=False), BEYOND])
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if not isinstance(token, int | None):
            raise TypeError(f"a special token has the id {token!r}")


def _check_files(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(
            f"expected a tokenizer in {directory}, found no such directory; check {spelled('tokenizer_dir')}"
        )
    if not holds_tokenizer(directory):
        if found := nested(directory, holds_tokenizer):
            raise UserError(
                f"{directory} holds directories of tokenizers; give {'one of them' if found[1:] else 'it'} as "
                f"{spelled('tokenizer_dir')}: {', '.join(map(str, found[:LISTED]))}"
            )
        raise UserError(
            f"{directory} holds no tokenizer: expected vocab.json and merges.txt, or tokenizer.json; "
            f"give {spelled('tokenizer_dir')}, the directory of the Hugging Face model"
        )
    for name, limit in LIMITS.items():
        _check_size(directory / name, limit)


def _check_size(path: Path, limit: int) -> None:
    """Refuse a file that transformers would open if it is not regular, is too large, or is JSON of too many values."""
    check_regular(path)
    if not path.exists():
        return
    text = read_text(path, "latin-1", limit)
    if path.suffix == ".json":
        check_values(text, path)


def _load(directory: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # takes seconds to import, and is not needed for token ids

    return AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, padding_side="left", truncation_side="left"
    )


def _adds_bos(directory: Path) -> bool:
    path = directory / "tokenizer_config.json"
    return not path.exists() or read_json(path).get("add_bos_token") is not False
