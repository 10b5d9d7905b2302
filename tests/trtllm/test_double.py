"""The double of `tensorrt_llm` takes what the real one takes and refuses what the real one refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from tests._processes import run_python
from tests.trtllm._builder import build_config_class, plugin_config
from tests.trtllm._checkpoint import read_values
from tests.trtllm._checks import MODEL
from tests.trtllm._facts import load, releases
from tests.trtllm._installed import differences, installed_flags
from tests.trtllm._package import environment, install

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "model"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("checkpoint")
    convert(ConvertConfig(model_dir=str(DEMO), output_dir=str(out / "c"), log_level="error"))
    return out / "c"


@pytest.mark.parametrize("release", releases())
def test_the_question_put_to_a_real_package_finds_the_double_as_its_facts_say(release, tmp_path):
    install(tmp_path, release)
    flags = installed_flags(environment(tmp_path))
    facts = load(release).facts
    assert differences(facts, flags) == []
    flags["max_batch_size"][1] += 1
    del flags["workers"]
    flags["new"] = [["--new"], None, []]
    told = differences(facts, flags)
    assert told[1:] == ["--new is not known", "--workers is not there"] and told[0].startswith(
        "--max_batch_size: default"
    )


@pytest.mark.parametrize("release", releases())
def test_unknown_keys_are_refused(release):
    facts = load(release).facts
    build_config = build_config_class(facts)
    assert build_config(max_batch_size=8).max_batch_size == 8
    with pytest.raises(TypeError, match="unheard_of"):
        build_config(unheard_of=1)
    with pytest.raises(AttributeError, match="no attribute unheard_of"):
        build_config().update_from_dict({"unheard_of": 1})
    with pytest.raises(ValueError, match=r"PluginConfig\.gemm_plugin: 'int3' is none of"):
        plugin_config(facts, {"gemm_plugin": "int3"})
    for section in ("quantization", "mapping"):
        with pytest.raises(TypeError, match="unexpected keyword argument 'unheard_of'"):
            read_values(facts, MODEL.to_dict() | {section: {"unheard_of": 1}})


@pytest.mark.parametrize("release", releases())
def test_the_double_is_a_package_that_builds_engines(release, checkpoint, tmp_path):
    install(tmp_path, release)
    command = ("-m", "tensorrt_llm.commands.build", "--checkpoint_dir", checkpoint)
    result = run_python(*command, cwd=tmp_path, environment=environment(tmp_path))
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "engine_outputs" / "config.json").read_text())
    assert config["version"] == load(release).version
    assert (tmp_path / "engine_outputs" / "rank0.engine").exists()
    assert "Total time of building all engines: " in result.stderr
