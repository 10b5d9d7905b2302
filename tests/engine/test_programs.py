"""The traps of compiled programs: each was met once, and stays shut."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from opt_trt.backends.engine import read_engine_config
from opt_trt.backends.inductor.compiler.compile import open_inductor
from opt_trt.backends.inductor.compiler.targets import for_cpu
from opt_trt.backends.inductor.decoder.compiled import CompiledDecoder, open_decoder
from opt_trt.backends.inductor.decoder.loading import load_programs
from opt_trt.errors import UserError
from opt_trt.graph.decoder import layer_weight_names
from opt_trt.ops import AttentionInputs
from opt_trt.plugins.cpu.isa import target_isa
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from tests._processes import run_python
from tests.engine.conftest import random_prompts


@pytest.fixture(scope="module")
def engine(engine_named):
    return engine_named("pre-norm")


@pytest.fixture(scope="module")
def decoder(engine) -> CompiledDecoder:
    return open_decoder(engine)


def generated_sources(engine, name):
    with zipfile.ZipFile(engine / "rank0.engine") as archive:
        names = [n for n in archive.namelist() if f"/{name}/" in n and n.endswith(".cpp")]
        assert names, archive.namelist()
        return "\n".join(archive.read(n).decode() for n in names)


def one_step(decoder, tokens=3, block=0, cache=None):
    """Run the first layer on one sequence of `tokens` new tokens in `block`."""
    if cache is None:
        cache = torch.full(decoder.spec.kv_shape(4), 7.0)
    step = AttentionInputs(
        slot_mapping=torch.arange(tokens) + block * decoder.spec.tokens_per_block,
        query_start=torch.tensor([0, tokens], dtype=torch.int32),
        kv_lens=torch.tensor([tokens], dtype=torch.int32),
        block_tables=torch.tensor([[block]], dtype=torch.int32),
    )
    x = torch.randn(tokens, decoder.spec.num_heads * decoder.spec.head_size)
    inputs = [
        x,
        *decoder.forward.model.layers[0],
        cache,
        step.slot_mapping,
        step.query_start,
        step.kv_lens,
        step.block_tables,
    ]
    return inputs, cache


def test_every_layer_writes_its_own_kv_cache(decoder):
    caches = [torch.zeros(decoder.spec.kv_shape(2)) for _ in range(decoder.spec.num_layers)]
    for layer, cache in enumerate(caches):
        inputs, _ = one_step(decoder, cache=cache)
        inputs[1:13] = decoder.forward.model.layers[layer]
        decoder.forward.model.programs["layer"].run(inputs)
    assert all(cache[0].abs().sum() > 0 for cache in caches)
    assert not torch.equal(caches[0], caches[1])


def test_only_the_slots_of_the_step_are_written(decoder):
    inputs, cache = one_step(decoder, tokens=3, block=2)
    decoder.forward.model.programs["layer"].run(inputs)
    written = cache != 7.0
    assert written[2, :, :, :3].all()
    assert written.sum() == written[2, :, :, :3].numel()


def test_the_kv_cache_is_neither_cloned_nor_copied_inside_a_program(engine, decoder):
    source = generated_sources(engine, "layer")
    assert "aoti_torch_clone" not in source
    assert "copy_" not in source.replace("memcpy_", "")
    inputs, cache = one_step(decoder)
    pointer = cache.data_ptr()
    decoder.forward.model.programs["layer"].run(inputs)
    assert cache.data_ptr() == pointer and (cache != 7.0).any()


@pytest.mark.parametrize("tokens", [1, 2, 31, 200])
def test_one_program_serves_one_token_and_many(decoder, tokens):
    cache = torch.zeros(16, *decoder.spec.kv_shape(1)[1:])
    step = (
        torch.arange(tokens),
        torch.tensor([0, tokens], dtype=torch.int32),
        torch.tensor([tokens], dtype=torch.int32),
        torch.arange(16, dtype=torch.int32)[None],
    )
    x = torch.randn(tokens, 64)
    assert decoder.forward.model.programs["layer"].run([x, *decoder.forward.model.layers[0], cache, *step]).shape == (
        tokens,
        64,
    )


def test_a_wrong_input_type_is_an_error_not_a_corrupted_heap(decoder):
    inputs, _ = one_step(decoder)
    inputs[0] = inputs[0].double()
    with pytest.raises(UserError, match="unmatched dtype"):
        decoder.forward.model.programs["layer"].run(inputs)


def test_swapped_inputs_are_an_error_not_garbage(decoder):
    inputs, _ = one_step(decoder)
    inputs[-1], inputs[-2] = inputs[-2], inputs[-1]
    with pytest.raises(UserError, match="input_handles"):
        decoder.forward.model.programs["layer"].run(inputs)


def test_operators_are_called_by_name_without_a_dispatcher(engine):
    assert "aoti_torch_proxy_executor_call_function" not in generated_sources(engine, "layer")


def test_ids_outside_the_vocabulary_never_reach_a_program(open_session):
    session = open_session("pre-norm")
    for bad in (-1, 131):
        with pytest.raises(UserError, match=f"token id {bad}"):
            generate(session, [Request((5, bad), 1)])


def test_loops_of_programs_never_meet_the_threads_of_openmp(engine):
    source = generated_sources(engine, "layer") + generated_sources(engine, "embedding")
    assert "for(int64_t" in source
    assert "#pragma omp parallel" not in source


def test_a_loader_is_made_once_per_package_and_program(engine):
    first, second = (load_programs(engine / "rank0.engine", ["layer"])[0] for _ in range(2))
    assert first._loader is second._loader


def test_a_second_copy_of_a_plugin_library_does_not_kill_the_process(engine, decoder, tmp_path, monkeypatch):
    import shutil

    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    again = open_decoder(copy)
    inputs, _ = one_step(again)
    assert again.forward.model.programs["layer"].run(inputs).isfinite().all()


def test_programs_are_loaded_without_a_compiler(engine, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert open_decoder(engine).spec.num_layers == 3


def test_a_package_that_cannot_be_loaded_is_named(engine, tmp_path):
    package = tmp_path / "rank0.engine"
    package.write_bytes((engine / "rank0.engine").read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"rank0\.engine cannot be loaded .*; it unpacks to .* [MG]B free"):
        load_programs(package, ["layer"])


@pytest.mark.parametrize("end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_unpacked_programs_go_with_their_process_or_with_the_next(engine, tmp_path, end):
    code = f"""
import sys
from pathlib import Path
from opt_trt.backends.inductor.decoder.loading import load_programs
load_programs(Path(sys.argv[1]), ["embedding"])
print(*(str(path) for path in Path(sys.argv[2]).rglob("*.so")))
{end}
"""
    unpacked = run_python("-c", code, engine / "rank0.engine", tmp_path, environment={"TMPDIR": str(tmp_path)}).stdout
    assert unpacked.strip().endswith(".so")
    assert [path.name for path in tmp_path.rglob("*.so")] == ([Path(unpacked.strip()).name] if end else [])
    run_python("-c", code.replace(end, "") if end else code, engine / "rank0.engine", tmp_path,
               environment={"TMPDIR": str(tmp_path)})  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_weights_that_programs_do_not_take_are_named(engine, decoder):
    program = load_programs(engine / "rank0.engine", ["layer"])[0]
    with pytest.raises(
        UserError, match=r"rank0\.engine and the weights beside it do not fit together \(expected inputs"
    ):
        program.run([torch.zeros(3, 3)] * 40)


def test_all_layers_share_one_program(engine):
    with zipfile.ZipFile(engine / "rank0.engine") as archive:
        libraries = [n for n in archive.namelist() if n.endswith(".so")]
    assert len(libraries) == 3  # embedding, layer, head; the model has three layers
    assert read_engine_config(engine).pretrained_config.num_hidden_layers == 3


def test_weights_are_mapped_once_for_both_phases(engine, decoder):
    pointers = [t.data_ptr() for layer in decoder.forward.model.layers for t in layer]
    assert len(set(pointers)) == 3 * len(layer_weight_names(read_engine_config(engine).pretrained_config, 0))


def test_generation_runs_compiled_programs_and_nothing_else(open_session, monkeypatch):
    """Eager torch must not be able to compute any part of a step."""
    session = open_session("pre-norm")

    def forbidden(*args, **kwargs):
        raise AssertionError("eager computation during generation")

    for name in ("linear", "layer_norm", "scaled_dot_product_attention", "embedding", "relu", "softmax"):
        monkeypatch.setattr(torch.nn.functional, name, forbidden)
    for name in ("matmul", "mm", "addmm", "bmm", "softmax", "layer_norm"):
        monkeypatch.setattr(torch, name, forbidden)
    monkeypatch.setattr(torch.Tensor, "__matmul__", forbidden)
    results = generate(session, [Request(p, 4) for p in random_prompts((1, 20))])
    assert [len(r.output_ids) for r in results] == [4, 4]


@pytest.mark.parametrize("before", [None, "elsewhere"])
def test_torch_is_as_it_was_when_a_build_has_ended(tmp_path, monkeypatch, before):
    from torch._inductor import codecache
    from torch._inductor.cpp_builder import CppBuilder

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before or "")
    if before is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    build, picked = CppBuilder.build, codecache.pick_vec_isa
    with pytest.raises(KeyboardInterrupt), open_inductor(for_cpu(target_isa(None)), tmp_path):
        assert CppBuilder.build is not build and codecache.pick_vec_isa is not picked
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent == tmp_path
        monkeypatch.setenv("OF_THE_USER", "set meanwhile")
        raise KeyboardInterrupt
    assert CppBuilder.build is build and codecache.pick_vec_isa is picked
    assert (os.environ.get("TORCHINDUCTOR_CACHE_DIR"), os.environ["OF_THE_USER"]) == (before, "set meanwhile")


def test_an_engine_is_opened_without_torchs_compiler(engine):
    """Importing it takes longer than everything else between a command and its first token."""
    code = """
import sys
from pathlib import Path
from opt_trt.backends import open_engine
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
open_engine(Path(sys.argv[1]), KvCacheLimit(max_tokens=64))
assert not [name for name in sys.modules if name.startswith("torch._inductor")]
"""
    result = run_python("-c", code, engine)
    assert result.returncode == 0, result.stderr
