"""OpenVINO GenAI's `LLMPipeline` with optimum-intel's export.

A variant names the type of the weights. `int8` uses OpenVINO's defaults, which quantize activations at run time.
`int8-bf16` also names the type of activations: int8 weights are multiplied in bf16, and activations stay unquantized.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from worker import LoadedModel, Prompts, run

HINT, GROUP = "INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"
NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8", "i8": "int8", "i4": "int4"}


def convert(hf: str, out: str, variant: str) -> None:
    """Convert as `optimum-cli export openvino --weight-format` does; the head of int4 models stays int8."""
    sys.modules["torchvision"] = None  # it is imported but not used, and its import fails with torch for CPUs
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    weights = variant.split("-")[0]
    int4 = OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0)
    chosen = {"quantization_config": int4} if weights == "int4" else {"load_in_8bit": weights == "int8"}
    dtype = {"dtype": "float32"} if weights == "fp32" else {}
    model = OVModelForCausalLM.from_pretrained(hf, export=True, compile=False, **chosen, **dtype)
    model.save_pretrained(out)


def properties(core: Any, variant: str) -> dict[str, Any]:
    """Return the precisions for compiling the model: those of the variant, or the device's own defaults."""
    activations = variant.partition("-")[2]
    if activations:
        return {HINT: activations, GROUP: 0}
    return {name: core.get_property("CPU", name) for name in (HINT, GROUP)}


def facts(core: Any, model: str, said: dict[str, Any]) -> dict[str, str]:
    """Read the types of the computation from the compiled program, because they depend on the processor."""
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
    """Return the logits behind each prompt, from a program compiled like the pipeline's, which returns only ids."""
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
        rows.append(answer["logits"][0, -1].copy())  # a copy, because a view would keep the logits of the whole prompt
    return np.stack(rows)


def open_model(model: str, variant: str) -> LoadedModel:
    """Open the pipeline on all cores."""
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

    return LoadedModel(computes, prepare, generate, partial(last_logits, core, model, said))


if __name__ == "__main__":
    run(open_model, convert)
