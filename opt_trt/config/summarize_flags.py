"""The flags of `summarize.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar

from opt_trt.config.convert_flags import RENAMED
from opt_trt.config.flags import GATE, INPUT, OUTPUT, SAMPLING, Refusal, flag
from opt_trt.config.sampling_options import SamplingOptions, options_of
from opt_trt.config.session_flags import SESSION_REFUSED, SessionConfig
from opt_trt.errors import UserError

DEFAULT_ROUGE1, DEFAULT_PERPLEXITY = 15.0, 15.0  # upstream's limits
LIMITS = ("tensorrt_llm_rouge1_threshold", "max_rouge1_drop", "tensorrt_llm_ppl_threshold")


@dataclass(frozen=True)
class SummarizeConfig(SessionConfig):
    """Summarize CNN/DailyMail with Hugging Face and with the engine, and compare ROUGE, perplexity and speed."""

    engine_dir: tuple[str, ...] = flag(
        ("engine_outputs",),
        "engine directories written by build.py; each has a column in the table",
        nargs="+",
        group=INPUT,
    )
    test_hf: bool = flag(False, "summarize with Hugging Face transformers", group=INPUT)
    test_trt_llm: bool = flag(False, "summarize with the engine (whichever backend built it)", group=INPUT)
    hf_data_type: str = flag(
        "float16", "type Hugging Face computes in", aliases=("data_type",),
        spellings={"half": "float16", "float": "float32"},
        choices=("fp32", "fp16", "bf16", "float32", "float16", "bfloat16"),
        group=INPUT,
    )  # fmt: skip
    dataset_dir: str | None = flag(
        None,
        "local copy of the dataset (parquet, json lines, saved dataset); default: the hub",
        group=INPUT,
    )
    dataset_cache_dir: str | None = flag(None, "where a dataset from the hub is cached", group=INPUT)
    batch_size: int = flag(1, "articles that are submitted together", group=INPUT)
    max_ite: int = flag(20, "batches to summarize", group=INPUT)
    output_len: int = flag(100, "most new tokens per summary", group=OUTPUT)
    max_input_length: int = flag(923, "cut prompts to this many tokens, from the left", group=INPUT)
    min_input_length: int = flag(0, "leave out articles with fewer tokens", group=INPUT)
    random_seed: int = flag(0, "seed of the order of the articles, and of the tokens drawn", group=SAMPLING)
    check_accuracy: bool = flag(False, "fail (exit 1) unless the engine's scores pass the thresholds", group=GATE)
    tensorrt_llm_rouge1_threshold: tuple[float, ...] = flag(
        (DEFAULT_ROUGE1,),
        "ROUGE-1 of the engine must be above this; one for all engines or one each",
        nargs="+",
        group=GATE,
    )
    max_rouge1_drop: tuple[float, ...] | None = flag(
        None,
        "most ROUGE-1 the engine may lose against Hugging Face in this run; one for all or one each",
        nargs="+",
        group=GATE,
    )
    eval_ppl: bool = flag(False, "also measure perplexity (engine built with --gather_context_logits)", group=OUTPUT)
    tensorrt_llm_ppl_threshold: tuple[float, ...] = flag(
        (DEFAULT_PERPLEXITY,),
        "perplexity of the engine must be below this; one for all or one each",
        nargs="+",
        group=GATE,
    )
    output_dir: str | None = flag(
        None, "write hf.out, trtllm.out (NAME.out of several) and summary.json here", group=OUTPUT
    )

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--test_hf --test_trt_llm --hf_model_dir opt-125m --data_type fp32 --engine_dir work/engine",
        "--test_trt_llm --engine_dir work/engine --dataset_dir examples/demo/test.jsonl --check_accuracy",
    )
    REFUSED: ClassVar[dict[str, Refusal]] = SESSION_REFUSED | {
        "dataset_path": Refusal(RENAMED, advice="give --dataset_dir or --dataset_cache_dir"),
        "num_return_sequences": Refusal("every article has one summary", ("1",)),
        "stop_words": Refusal("summaries end at --end_id or --output_len"),
        "bad_words": Refusal("summaries may use every word"),
        "streaming": Refusal("scores need whole summaries"),
        "streaming_interval": Refusal("scores need whole summaries"),
        "eval_task": Refusal("the task is summarize", ("summarize",)),
        "estimate_accuracy_std_dev": Refusal("the table has the spread of ROUGE-1 already"),
        "rouge_dir": Refusal("rouge_score is a dependency: there is no metric script to load"),
        "hf_device_map_auto": Refusal("Hugging Face runs on the engine's device"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "max_ite", "output_len"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, found {getattr(self, name)}")
        if not (self.test_hf or self.test_trt_llm):
            raise UserError("nothing to do: give --test_hf, --test_trt_llm or both")
        if self.test_hf and self.hf_model_dir is None:
            raise UserError("--test_hf needs --hf_model_dir: the directory of the Hugging Face model")
        self._check_penalties()
        self._check_engines()
        self._check_gate()

    def _check_gate(self) -> None:
        """Refuse a gate without an engine, and limits that nothing would be compared with."""
        if self.check_accuracy and not self.test_trt_llm:
            raise UserError("--check_accuracy checks the engine: give --test_trt_llm too")
        if self.max_rouge1_drop is not None and not (self.test_hf and self.check_accuracy):
            raise UserError("--max_rouge1_drop compares with Hugging Face: give --test_hf and --check_accuracy too")
        for name, needed in (
            ("tensorrt_llm_rouge1_threshold", "check_accuracy"), ("tensorrt_llm_ppl_threshold", "check_accuracy"),
            ("tensorrt_llm_ppl_threshold", "eval_ppl"),
        ):  # fmt: skip
            if getattr(self, name) != getattr(type(self), name) and not getattr(self, needed):
                raise UserError(f"--{name} would check nothing: give --{needed} too, or drop it")

    def idle_flags(self) -> tuple[str, ...]:
        """See `Logged.idle_flags`. NVIDIA's own command lines have such flags, so that they are not refused."""
        lines = []
        if self.hf_data_type != type(self).hf_data_type and not self.test_hf:
            lines.append(f"--hf_data_type {self.hf_data_type} has no effect without --test_hf")
        if self.engine_dir != type(self).engine_dir and not self.test_trt_llm:
            lines.append(f"--engine_dir {' '.join(self.engine_dir)} is not measured without --test_trt_llm")
        return tuple(lines)

    def engine_names(self) -> tuple[str, ...]:
        """Return the engines' names in table and files: `engine` for one, their directories' names for several."""
        several = len(self.engine_dir) > 1
        return tuple(PurePath(d).name for d in self.engine_dir) if several else ("engine",)

    def _check_engines(self) -> None:
        names = self.engine_names()
        if len(set(names)) < len(names) or {"", "hf"} & set(names):
            raise UserError(
                f"--engine_dir: engines are told apart by the names of their directories, found {', '.join(names)}; "
                "give different ones, and none named hf"
            )
        for flag_name in LIMITS:
            given = getattr(self, flag_name)
            if given is not None and len(given) not in (1, len(names)):
                raise UserError(f"--{flag_name} takes one limit or one for each of {len(names)}, found {len(given)}")

    def _check_penalties(self) -> None:
        for name, row in options_of(SamplingOptions).items():
            if self.test_hf and row.transformers is None and getattr(self, name) not in row.neutral:
                raise UserError(f"--{name} is unknown to transformers: drop it, or --test_hf")
