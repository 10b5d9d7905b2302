"""The flags of `run.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from opt_trt.config.convert_flags import RENAMED
from opt_trt.config.flags import INPUT, OUTPUT, TENSORRT, Refusal, check_required, flag
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.sampling import check_number_of_outputs
from opt_trt.config.session_flags import SESSION_REFUSED, SessionConfig
from opt_trt.errors import UserError

Groups = tuple[tuple[str, ...], ...] | None  # groups of words: one for all prompts, or one for each prompt
DEFAULT_PROMPT = "Born in north-east France, Soyer trained as a"


@dataclass(frozen=True)
class RunConfig(SessionConfig):
    """Generate text with an engine."""

    engine_dir: str = flag("engine_outputs", "engine directory written by build.py", group=INPUT)
    max_output_len: int | None = flag(
        None, "most new tokens per prompt", group=OUTPUT, required="the most new tokens per prompt"
    )
    input_text: tuple[str, ...] = flag((DEFAULT_PROMPT,), "prompts", nargs="+", group=INPUT)
    input_file: str | None = flag(
        None,
        "prompts from .txt or /dev/stdin (one per line), or token ids from .csv or .npy (one prompt per row)",
        group=INPUT,
    )
    output_csv: str | None = flag(None, "write token ids, prompt included, one row per prompt", group=OUTPUT)
    output_npy: str | None = flag(None, "write token ids, prompt included, one row per prompt", group=OUTPUT)
    output_log_probs_npy: str | None = flag(None, "write the model's log-probability of every new token", group=OUTPUT)
    output_cum_log_probs_npy: str | None = flag(
        None, "write the sum of the log-probabilities of every output", group=OUTPUT
    )
    output_logits_npy: str | None = flag(
        None,
        "write NAME_context.npy, logits of all prompt tokens (engine built with --gather_context_logits)",
        group=OUTPUT,
    )
    output_generation_logits: bool = flag(
        False,
        "write NAME_generation.npy too, logits of all new tokens (--gather_generation_logits)",
        group=OUTPUT,
    )
    num_return_sequences: int | None = flag(
        None, "outputs per prompt: drawn with random numbers of their own, or the best of the beams; "
        "default: one, or all beams",
        group=OUTPUT,
    )  # fmt: skip
    stop_words: tuple[tuple[str, ...], ...] | None = flag(
        None, "strings that end an output, which leaves them out; repeat the flag to give each prompt its own",
        nargs="+", repeats=True,
        group=OUTPUT,
    )  # fmt: skip
    bad_words: tuple[tuple[str, ...], ...] | None = flag(
        None, "words that are never generated, with spaces as in the text (' London'); repeat likewise",
        nargs="+", repeats=True,
        group=OUTPUT,
    )  # fmt: skip
    streaming: bool = flag(False, "print text while it is generated", group=OUTPUT)
    streaming_interval: int = flag(5, "tokens between two prints of a stream", group=OUTPUT)
    interactive: bool = flag(
        False, "ask for prompts, one per line, and print outputs while they are generated", group=INPUT
    )
    fail_fast_on_attention_window_too_large: bool = flag(
        False,
        "TensorRT engines: refuse an attention window larger than the KV cache, do not shrink it",
        group=TENSORRT,
    )
    run_profiling: bool = flag(False, "time 10 generations, after 10 to warm up", group=OUTPUT)

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        '--engine_dir work/engine --max_output_len 50 --input_text "Today we"',
        "--engine_dir work/engine --max_output_len 50 --top_k 50 --temperature 0.8 --interactive",
    )
    REFUSED: ClassVar[dict[str, Refusal]] = SESSION_REFUSED | {
        "input_tokens": Refusal(RENAMED, advice="give --input_file"),
        "multimodal_input_file": Refusal("OPT reads text"),
        "input_token_extra_ids": Refusal("prompt tables are not supported"),
        "input_token_extra_ids_file": Refusal("prompt tables are not supported"),
        "draft_engine_dir": Refusal("speculative decoding is not offered for OPT"),
        "hf_data_type": Refusal("run.py loads no Hugging Face weights"),
        "data_type": Refusal("run.py loads no Hugging Face weights"),
        "hf_device_map_auto": Refusal("run.py loads no Hugging Face weights"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_required(self)
        if self.max_output_len is not None and self.max_output_len < 1:
            raise UserError(f"--max_output_len must be at least 1, found {self.max_output_len}")
        if self.streaming_interval < 1:
            raise UserError(f"--streaming_interval must be at least 1, found {self.streaming_interval}")
        self._check_number_of_outputs()
        self._check_beams()
        self._check_logits()
        self._check_interactive()

    def runtime_options(self) -> RuntimeOptions:
        """See `SessionConfig.runtime_options`."""
        return replace(
            super().runtime_options(),
            fail_fast_on_attention_window_too_large=self.fail_fast_on_attention_window_too_large,
            gather_generation_logits=self.output_generation_logits,
        )

    @property
    def num_draws(self) -> int:
        """The sequences to draw for each prompt; each is a request of its own."""
        return 1 if self.num_beams > 1 else self.num_return_sequences or 1

    @property
    def num_shown_beams(self) -> int:
        """The outputs of each request that are printed and written."""
        return 1 if self.num_beams == 1 else self.num_return_sequences or self.num_beams

    def targets(self) -> list[str]:
        """Return every file to write."""
        names = (self.output_csv, self.output_npy, self.output_log_probs_npy, self.output_cum_log_probs_npy)
        return [*(name for name in names if name is not None), *self.logits_targets()]

    def logits_targets(self) -> tuple[str, ...]:
        """Return the files of context and of generation logits, with upstream's names, if logits are asked for."""
        if self.output_logits_npy is None:
            return ()
        stem = self.output_logits_npy.removesuffix(".npy")
        return (f"{stem}_context.npy", f"{stem}_generation.npy")

    def _check_number_of_outputs(self) -> None:
        count = 1 if self.num_return_sequences is None else self.num_return_sequences
        if count < 1:
            raise UserError(f"--num_return_sequences must be at least 1, found {count}")
        check_number_of_outputs("num_return_sequences", count)
        if count > 1 and self.penalty_alpha:
            raise UserError(
                f"--num_return_sequences {count} would give one contrastive output as many times; "
                "drop it or --penalty_alpha"
            )
        if self.num_beams == 1 and count > 1 and not self.sampling().draws:
            raise UserError(
                f"--num_return_sequences {count} would give one greedy output as many times; "
                "give --top_k 50, --top_k 0 --top_p 0.9, or --num_beams"
            )
        if self.num_beams > 1 and count > self.num_beams:
            raise UserError(
                f"--num_return_sequences {count} is more than the outputs of --num_beams {self.num_beams}; raise that"
            )

    def _check_beams(self) -> None:
        """Refuse beams together with options that follow a single output."""
        following = ("streaming", "interactive", "stop_words", "output_generation_logits")
        given = next((name for name in following if getattr(self, name)), None)
        if self.num_beams > 1 and given:
            raise UserError(
                f"--{given} follows one output from token to token, --num_beams {self.num_beams} chooses at the end; "
                "drop one of the two"
            )

    def _check_logits(self) -> None:
        if self.output_generation_logits and self.output_logits_npy is None:
            raise UserError("--output_generation_logits says what to write, not where: give --output_logits_npy too")
        if self.output_logits_npy is not None and self.streaming:
            raise UserError("--output_logits_npy writes whole outputs, --streaming has none: drop one of the two")

    def _check_interactive(self) -> None:
        """Refuse `--interactive` together with options that need all prompts before the first output."""
        given = {
            "--input_file": self.input_file,
            "--input_text": self.input_text != (DEFAULT_PROMPT,),
            "--run_profiling": self.run_profiling,
            "the --output_ file": self.targets(),
        }
        clash = next((name for name, value in given.items() if value), None)
        if self.interactive and clash:
            raise UserError(f"--interactive asks for prompts and prints outputs; drop it or {clash}")

    def idle_flags(self) -> tuple[str, ...]:
        """See `Logged.idle_flags`."""
        if self.streaming_interval == type(self).streaming_interval or self.streaming or self.interactive:
            return ()
        return (f"--streaming_interval {self.streaming_interval} has no effect without --streaming",)

    def prints_outputs(self) -> bool:
        """Return whether outputs are printed: they are unless their ids are written to a file."""
        return self.output_csv is None and self.output_npy is None
