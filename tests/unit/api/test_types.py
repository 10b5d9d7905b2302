"""A user's script is checked by mypy --strict: options by all names pass, and mistakes are found before it runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import opt_trt
from tests._processes import run_python

ROOT = Path(opt_trt.__file__).parents[1]
SCRIPT = """
import asyncio
from pathlib import Path

import torch

from opt_trt import LLM, CompletionOutput, LlmOptions, PendingOutput, RequestOutput, SamplingParams, UserError


async def show(llm: LLM, prompt: str) -> str:
    async for answer in llm.generate_async(prompt, SamplingParams(temperature=0.8, max_new_tokens=20)):
        print(answer.outputs[0].text_diff, end="", flush=True)
    return (await llm.generate_async(prompt)).outputs[0].text


def texts(answers: list[RequestOutput]) -> list[str]:
    outputs: list[CompletionOutput] = [answer.outputs[0] for answer in answers]
    return [output.text for output in outputs]


options = LlmOptions(max_seq_len=64)
with LLM(Path("opt-125m"), dtype=torch.float16, max_model_len=64, trust_remote_code=True, swap_space=0) as llm:
    params = SamplingParams(n=2, top_p=0.9, best_of=2, beam_width=1, random_seed=7, logprobs=1, stop=["x"])
    print(texts(llm.generate(["The mayor", "A new bridge"], params.clone(n=1), use_tqdm=False)))
    print(texts(llm.generate({"prompt_token_ids": [2, 5]}, {"max_tokens": 2})))
    print(llm.generate("a", max_tokens=2)[0].metrics)
    pending: PendingOutput = llm.generate_async("The mayor", streaming=False)
    print(pending.result(timeout=5.0).request_id, asyncio.run(show(llm, "The mayor")))
    ids: torch.Tensor = llm.generate_ids([[2, 5]], max_length=9)
    print(ids, llm.generate_ids(ids, return_dict_in_generate=True).sequences.tolist())
    try:
        LLM("nowhere")
    except UserError as error:
        print(error)
"""
WRONG = """
from opt_trt import LLM, SamplingParams

LLM("model", max_seqlen=5)
LLM("model", max_seq_len="5")
SamplingParams(temperature="warm")
SamplingParams(0.8)
LLM("model").chat("a")
"""


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "opt_trt/py.typed").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["opt_trt"]


@pytest.mark.slow
def test_a_script_passes_and_its_mistakes_are_found(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(WRONG)
    flags = ("--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "--config-file", str(ROOT / "pyproject.toml"))
    found = {name: run_python("-m", "mypy", *flags, str(tmp_path / name)) for name in ("script.py", "wrong.py")}
    assert found["script.py"].returncode == 0, found["script.py"].stdout
    lines = {line.split(":")[1] for line in found["wrong.py"].stdout.splitlines() if ": error:" in line}
    assert lines == {"4", "5", "6", "7", "8"}, found["wrong.py"].stdout
