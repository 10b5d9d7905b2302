"""A quantized checkpoint returns its integers, whether it is packed for some GPU or not packed."""

from __future__ import annotations

import json

import pytest
import torch

from opt_trt.backends.build import build
from opt_trt.checkpoint.packing import DEFERRED_ONLY, INTERLEAVED
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.weight_only import integers
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.model.placement import is_linear
from opt_trt.quant import MODES
from tests.unit._models import Model

SMS = [sm for sm in INTERLEAVED if sm not in DEFERRED_ONLY] + [120]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(hidden=64, width=64, ffn=128).write(tmp_path_factory.mktemp("model"))


def converted(model, out, **flags):
    convert(ConvertConfig(model_dir=str(model), output_dir=str(out), log_level="error", **flags))
    return Checkpoint(out)


@pytest.mark.parametrize("precision", MODES)
@pytest.mark.parametrize("flags", [{"target_sm": sm} for sm in SMS] + [{"defer_quantization": True}], ids=str)
def test_integers_and_scales_are_those_of_the_plain_weight(model, tmp_path, precision, flags):
    quantized = converted(model, tmp_path / "q", use_weight_only=True, weight_only_precision=precision, **flags)
    plain = converted(model, tmp_path / "plain")
    linears = [name for name in plain.spec if is_linear(name)]
    assert len(linears) == 4 * quantized.config.num_hidden_layers
    for name in linears:
        for found, expected in zip(
            integers(quantized, name), MODES[precision].quantize(plain.tensor(name)), strict=True
        ):
            assert torch.equal(found, expected), name


def test_packed_weights_of_an_unknown_gpu_are_refused_with_what_to_add(model, tmp_path):
    """TensorRT-LLM's own converter does not name the GPU for which it packed."""
    converted(model, tmp_path / "q", use_weight_only=True, target_sm=80)
    path = tmp_path / "q" / "config.json"
    values = json.loads(path.read_text())
    del values["target_sm"]
    path.write_text(json.dumps(values))
    with pytest.raises(
        UserError, match=r'which GPU its weights are packed for; add "target_sm": 80 .*, or give --packed_sm 80'
    ):
        build(BuildConfig(checkpoint_dir=str(tmp_path / "q"), backend="tensorrt_llm", dry_run=True))
