"""OpenVINO GenAI's `LLMPipeline` over optimum-intel's export; its default precisions, or activations as named.

A variant is the type of the weights, then, where it is named, the type activations are computed in with nothing
quantized as it comes: `int8` is what users get, `int8-bf16` int8 weights multiplied in bf16.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from worker import Opened, Prompts, run

HINT, GROUP = "INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"
NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8", "i8": "int8", "i4": "int4"}


def convert(hf: str, out: str, variant: str) -> None:
    """As `optimum-cli export openvino --weight-format` does; of int4 models the head stays int8."""
    sys.modules["torchvision"] = None  # pulled in unused: built for another torch than a CPU's, its import fails
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    weights = variant.split("-")[0]
    int4 = OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0)
    chosen = {"quantization_config": int4} if weights == "int4" else {"load_in_8bit": weights == "int8"}
    dtype = {"dtype": "float32"} if weights == "fp32" else {}
    model = OVModelForCausalLM.from_pretrained(hf, export=True, compile=False, **chosen, **dtype)
    model.save_pretrained(out)


def properties(core: Any, variant: str) -> dict[str, Any]:
    """The precisions to compute with, said to all who compile the model: those of a variant, else the device's own."""
    activations = variant.partition("-")[2]
    if activations:
        return {HINT: activations, GROUP: 0}
    return {name: core.get_property("CPU", name) for name in (HINT, GROUP)}


def facts(core: Any, model: str, said: dict[str, Any]) -> dict[str, str]:
    """What the model is computed with here, read off the compiled program: the processor decides, not the file."""
    compiled = core.compile_model(Path(model) / "openvino_model.xml", "CPU", said)
    read = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {name: str(value.astype(str)) for name, value in node.get_rt_info().items()}
        if info["layerType"] == "FullyConnected":
            place = "head" if "lm_head" in node.get_friendly_name() else "weights"
            read[place] = NAMES[info["runtimePrecision"]]
    kv_cache = compiled.get_property("KV_CACHE_PRECISION").to_string()
    plain = NAMES[compiled.get_property(HINT).to_string()]
    group = int(compiled.get_property(GROUP))
    quantized = group and read["weights"] in ("uint8", "int8", "int4")
    activations = f"int8 (groups of {group}, dynamic), head {plain}" if quantized else plain
    return read | {"kv_cache": NAMES[kv_cache], "activations": activations}


def last_logits(core: Any, model: str, said: dict[str, Any], prompts: Prompts) -> np.ndarray:
    """Of a program compiled as the pipeline's is, which gives ids alone; gone again with the answer."""
    request = core.compile_model(Path(model) / "openvino_model.xml", "CPU", said).create_infer_request()
    rows = []
    for row in prompts:
        ids = np.array([row], np.int64)
        known = {
            "input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(len(row))[None],
            "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        request.reset_state()
        answer = request.infer({taken.any_name: known[taken.any_name] for taken in request.model_inputs})
        rows.append(answer["logits"][0, -1].copy())  # alone, not as a view of those of the whole prompt
    return np.stack(rows)


def open_model(model: str, variant: str) -> Opened:
    """The pipeline on all cores."""
    core = openvino.Core()
    said = properties(core, variant)
    computes = facts(core, model, said)
    pipeline = openvino_genai.LLMPipeline(model, "CPU", **said)

    def prepare(prompts: Prompts) -> openvino_genai.TokenizedInputs:
        ids = np.array(prompts, dtype=np.int64)
        return openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))

    def generate(ids: openvino_genai.TokenizedInputs, output_len: int) -> list[list[int]]:
        greedy = openvino_genai.GenerationConfig(max_new_tokens=output_len, ignore_eos=True, do_sample=False)
        return [list(row) for row in pipeline.generate(ids, greedy).tokens]

    return Opened(computes, prepare, generate, partial(last_logits, core, model, said))


if __name__ == "__main__":
    run(open_model, convert)
