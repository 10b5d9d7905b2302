"""`--packed_sm` says what NVIDIA's converter leaves out: the GPU in whose layout the weights are packed."""

from __future__ import annotations

import json
import shutil

import pytest

from opt_trt.backends.build import build
from opt_trt.checkpoint.reader import Checkpoint, read_config
from opt_trt.checkpoint.weight_only import integers
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.config.export_flags import ExportConfig
from opt_trt.config.repack_flags import RepackConfig
from opt_trt.convert.convert import convert
from opt_trt.convert.export_hf import export_hf
from opt_trt.convert.repack import repack
from opt_trt.describe.describe import describe
from opt_trt.errors import UserError
from tests.unit._models import Model

LINEAR = "transformer.layers.0.attention.qkv.weight"


@pytest.fixture(scope="module", params=[80, 90])
def packed(request, tmp_path_factory):
    """Return a packed checkpoint that names its GPU, the same without the name, and the GPU."""
    work = tmp_path_factory.mktemp("packed")
    model = Model(vocab=50, hidden=128, width=128, layers=1, ffn=256, config={"num_attention_heads": 4})
    named, unnamed = work / "named", work / "unnamed"
    convert(ConvertConfig(model_dir=str(model.write(work / "model")), output_dir=str(named), tp_size=2,
                          use_weight_only=True, target_sm=request.param, log_level="error"))  # fmt: skip
    shutil.copytree(named, unnamed)
    values = json.loads((named / "config.json").read_text())
    (unnamed / "config.json").write_text(json.dumps({key: v for key, v in values.items() if key != "target_sm"}))
    return named, unnamed, request.param


def test_weights_are_read_in_the_layout_of_that_gpu(packed):
    named, unnamed, sm = packed
    assert read_config(unnamed, sm) == read_config(named)
    found, wanted = (
        integers(checkpoint, LINEAR)[0] for checkpoint in (Checkpoint(unnamed, 1, sm), Checkpoint(named, 1))
    )
    assert found.equal(wanted)
    other = integers(Checkpoint(unnamed, 1, 170 - sm), LINEAR)[0]
    assert not other.equal(wanted)


def test_builder_and_its_ranks_know_it(packed, tmp_path, capsys):
    _, unnamed, sm = packed
    config = {"checkpoint_dir": str(unnamed), "output_dir": str(tmp_path / "e"), "max_batch_size": 2, "dry_run": True}
    with pytest.raises(UserError, match="or give --packed_sm 80"):
        build(BuildConfig(**config))
    build(BuildConfig(**config, packed_sm=sm))
    assert "weights, rank 0" in capsys.readouterr().out
    assert [Checkpoint(unnamed, 0, sm).of_rank(rank).config.target_sm for rank in range(2)] == [sm, sm]


def test_exported_and_repacked_weights_are_those_of_the_named_checkpoint(packed, tmp_path):
    named, unnamed, sm = packed
    for source, packed_sm in ((named, None), (unnamed, sm)):
        out = tmp_path / source.name
        flags = {"checkpoint_dir": str(source), "packed_sm": packed_sm, "log_level": "error"}
        export_hf(ExportConfig(**flags, output_dir=str(out / "hf")))
        repack(RepackConfig(**flags, target_sm=170 - sm, output_dir=str(out / "packed")))
    assert read_config(tmp_path / "unnamed/packed") == read_config(tmp_path / "named/packed")
    for file in ("hf/model.safetensors", "packed/rank1.safetensors"):
        pair = [tmp_path / name / file for name in ("named", "unnamed")]
        assert pair[0].read_bytes() == pair[1].read_bytes()


def test_describe_names_it_and_compares_the_weights(packed, capsys):
    named, unnamed, sm = map(str, packed)
    describe(DescribeConfig((unnamed,), packed_sm=int(sm)))
    assert f"packed for SM {sm}" in capsys.readouterr().out
    describe(DescribeConfig((named, unnamed), compare=True, packed_sm=int(sm)))
    assert "are equal: the same configuration" in capsys.readouterr().out


def test_a_gpu_that_is_named_already_or_needs_no_name_is_refused(packed, tmp_path):
    named, unnamed, sm = packed
    plain = Model().write(tmp_path / "model")
    convert(ConvertConfig(model_dir=str(plain), output_dir=str(tmp_path / "c"), log_level="error"))
    for call, says in (
        (lambda: read_config(named, 170 - sm), f"packed for SM {sm}; drop --packed_sm {170 - sm}"),
        (lambda: read_config(tmp_path / "c", 80), "c holds no packed weights; drop --packed_sm 80"),
        (lambda: read_config(unnamed, 70), "SM 70 has no known weight-only layout; known are 75, 80"),
        (
            lambda: describe(DescribeConfig((str(plain),), packed_sm=80)),
            "model is not a checkpoint, .*drop --packed_sm 80",
        ),
        (
            lambda: describe(DescribeConfig((str(named), str(named)), compare=True, packed_sm=80)),
            "neither .* nor .* needs a GPU to be named; drop --packed_sm 80",
        ),
    ):
        with pytest.raises(UserError, match=says):
            call()
