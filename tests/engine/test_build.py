"""What the builder's flags do to an engine, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from opt_trt.backends import open_engine
from opt_trt.backends.build import build
from opt_trt.backends.engine import read_engine_config, seal
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.host.cache import cache_dir
from opt_trt.host.kept import is_whole
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from tests._processes import start_python
from tests.engine._eager import choose_tactics

LIMIT = KvCacheLimit(max_tokens=2048)


@pytest.fixture(scope="module")
def checkpoint(hf_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("checkpoint") / "c"
    convert(ConvertConfig(model_dir=str(hf_model("pre-norm")), output_dir=str(out), dtype="float32"))
    return out


def build_here(checkpoint, out, **flags):
    flags.setdefault("output_timing_cache", str(out.parent / "model.cache"))
    build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir=str(out), **flags))
    return json.loads((out / "config.json").read_text())


def test_an_engine_directory_has_a_config_programs_weights_and_plugin_library(checkpoint, tmp_path):
    config = build_here(checkpoint, tmp_path / "e")
    files = {p.name for p in (tmp_path / "e").iterdir()}
    assert files == {"config.json", "rank0.engine", "rank0.weights.safetensors", config["plugin_library"]}
    assert list(config)[:3] == ["version", "pretrained_config", "build_config"]
    assert config["backend"] == "inductor"


def test_a_rebuild_of_the_same_shapes_compiles_nothing(checkpoint, tmp_path, monkeypatch):
    build_here(checkpoint, tmp_path / "first")
    monkeypatch.setattr("opt_trt.backends.inductor.compiler.compile.compile_program", None)
    monkeypatch.setattr("opt_trt.plugins.native.library._compile", None)
    build_here(checkpoint, tmp_path / "second", input_timing_cache=str(tmp_path / "model.cache"))
    assert (tmp_path / "second" / "rank0.engine").is_file()


def test_two_builds_with_one_timing_cache_choose_the_same_tactics(checkpoint, tmp_path):
    cache = str(tmp_path / "model.cache")
    first = build_here(checkpoint, tmp_path / "a", output_timing_cache=cache)
    second = build_here(checkpoint, tmp_path / "b", input_timing_cache=cache, output_timing_cache=cache)
    assert first["tactics"] == second["tactics"]


def test_a_timing_cache_that_was_given_leaves_the_users_own_as_it_was(checkpoint, tmp_path):
    build_here(checkpoint, tmp_path / "a", output_timing_cache=str(tmp_path / "model.cache"))
    own, doctored = cache_dir() / "timing.cache", tmp_path / "doctored.cache"
    times = json.loads(own.read_text())  # a second for a nanosecond: the same tactics win, whose programs are there
    doctored.write_text(json.dumps({key: {t: us * 1e9 for t, us in row.items()} for key, row in times.items()}))
    build_here(checkpoint, tmp_path / "b", input_timing_cache=str(doctored))
    assert max(us for row in json.loads(own.read_text()).values() for us in row.values()) < 1e9


def test_a_build_where_tensorrt_has_left_its_timings_leaves_them_there(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("model.cache").write_bytes(b"\x00\xff timings of TensorRT")
    for _ in range(2):
        build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir="e"))
        assert "model.cache is not a timing cache of the embedded backend" in capsys.readouterr().err
    assert Path("model.cache").read_bytes() == b"\x00\xff timings of TensorRT"
    with pytest.raises(UserError, match=r"model\.cache is not a timing cache of the embedded backend; delete it"):
        build(BuildConfig(checkpoint_dir=str(checkpoint), output_dir="e", input_timing_cache="model.cache"))


def test_own_kernels_win_for_gemm_and_attention_at_one_token(checkpoint, tmp_path):
    tactics = build_here(checkpoint, tmp_path / "e")["tactics"]
    assert any(tactics[site][0].startswith("fp32_") for site in ("qkv", "dense", "fc", "proj", "head"))
    assert tactics["attention"][0] == "unfused"


def test_disabled_plugins_leave_the_library_only(checkpoint, tmp_path):
    flags = {"gemm_plugin": "disable", "gpt_attention_plugin": "disable"}
    tactics = choose_tactics(checkpoint, tmp_path / "model.cache", **flags)
    assert {name for names in tactics.values() for name in names} == {"library"}


def test_context_fmha_disable_leaves_unfused_attention(checkpoint, tmp_path):
    tactics = choose_tactics(checkpoint, tmp_path / "model.cache", context_fmha="disable")
    assert not {"flash", "flash_pairs"} & {*tactics["attention"]}


def test_limits_are_recorded_clipped_and_enforced(checkpoint, tmp_path):
    config = build_here(
        checkpoint, tmp_path / "e", max_batch_size=2, max_input_len=50, max_seq_len=40, max_num_tokens=30,
        tokens_per_block=8, gemm_plugin="disable", gpt_attention_plugin="disable",  # the programs of `library`
    )  # fmt: skip
    limits = config["build_config"]
    assert [limits[k] for k in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")] == [2, 30, 40, 30]
    session = open_engine(tmp_path / "e", LIMIT)
    assert session.spec.tokens_per_block == 8
    assert len(generate(session, [Request((5,) * 10, 3)] * 5)) == 5  # more than max_batch_size: queued
    with pytest.raises(UserError, match="has 31 tokens, the engine takes 30"):
        generate(session, [Request((5,) * 31, 1)])
    with pytest.raises(UserError, match="41, the engine takes 40"):
        generate(session, [Request((5,) * 30, 11)])


def test_max_seq_len_defaults_to_the_position_table(checkpoint, tmp_path):
    assert build_here(checkpoint, tmp_path / "e")["build_config"]["max_seq_len"] == 96


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"max_seq_len": 97}, "--max_seq_len 97 is beyond the checkpoint's position table of 96 rows"),
        ({"gemm_plugin": "float16"}, "--gemm_plugin float16 does not fit a checkpoint of float32"),
        ({"gpt_attention_plugin": "bfloat16"}, "--gpt_attention_plugin bfloat16 does not fit"),
        ({"use_parallel_embedding": True}, "convert --use_parallel_embedding --embedding_sharding_dim 0"),
        ({"embedding_sharding_dim": 1}, "converted with 0; convert it with"),
    ],
)
def test_flags_that_do_not_fit_the_checkpoint_are_refused(checkpoint, tmp_path, flags, text):
    with pytest.raises(UserError, match=text):
        build_here(checkpoint, tmp_path / "e", **flags)
    assert not (tmp_path / "e").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(checkpoint, tmp_path, capsys):
    build(
        BuildConfig(
            checkpoint_dir=str(checkpoint), output_dir=str(tmp_path / "e"), dry_run=True, lm_head_precision="int4"
        )
    )
    text = capsys.readouterr().out
    for line in (
        "weights, rank 0",
        "KV cache, rank 0",
        "to compile",
        "plugin library",
        "embedding, layer, head",
        "head              int4",
    ):
        assert line in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verbosity", "shown", "hidden"),
    [("none", "engine", "tactic"), ("layer_names_only", "fp32_", "others"), ("detailed", "library", "unheard")],
)
def test_profiling_verbosity_says_how_much_of_the_table_is_printed(
    checkpoint, tmp_path, capsys, verbosity, shown, hidden
):
    build_here(checkpoint, tmp_path / "e", profiling_verbosity=verbosity)
    text = capsys.readouterr().out
    assert shown in text and hidden not in text


def test_a_detailed_build_profiles_a_step(checkpoint, tmp_path, capsys):
    build_here(checkpoint, tmp_path / "e", profiling_verbosity="detailed")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"threads: {torch.get_num_threads()}, of ") for line in lines)
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("operation")) :]
    rows = {line.split()[0]: line for line in table}
    tactics = read_engine_config(tmp_path / "e").tactics
    recorded = {site for site in tactics if tactics[site][0] != "library"}  # the library's are outside of our kernels
    assert recorded and {"embedding", "outside", *recorded} <= rows.keys()
    assert all(float(rows[site].split()[2]) > 0 for site in recorded)  # µs


def test_a_profile_counts_the_bytes_and_operations_of_the_shapes(checkpoint, tmp_path):
    """Three layers, hidden 64, ffn 144, 131 tokens in fp32; 96 positions are in the cache, as keys and as values."""
    from opt_trt.backends.inductor.profiler.step_profile import Work, profile_engine

    build_here(checkpoint, tmp_path / "e")
    profile = profile_engine(tmp_path / "e")
    assert profile.context_tokens == 96
    weights = {"qkv": 192 * 64, "dense": 64 * 64, "fc": 144 * 64, "proj": 64 * 144}  # elements of a layer's
    expected = {site: Work(3 * 4 * elements, 3 * 2 * elements) for site, elements in weights.items()}
    expected["attention"] = Work(3 * 4 * 96 * 2 * 64, 3 * 2 * 96 * 2 * 64)
    rows = 131 if read_engine_config(tmp_path / "e").tactics["head"][0] == "library" else 144  # whole groups of 16
    assert profile.work == expected | {"head": Work(4 * rows * 64, 2 * 131 * 64)}


def test_steps_touch_no_new_memory_after_the_first_ones(checkpoint, tmp_path):
    from opt_trt.backends.inductor.profiler.step_profile import profile_engine

    build_here(checkpoint, tmp_path / "e")
    assert profile_engine(tmp_path / "e").page_faults < 0.5  # a fault in every step would be at least 1


def test_log_level_warning_prints_nothing(checkpoint, tmp_path, capsys):
    build_here(checkpoint, tmp_path / "e", log_level="warning", profiling_verbosity="detailed")
    assert capsys.readouterr().out == ""


def test_the_backend_is_recorded_and_an_unknown_one_is_refused(checkpoint, tmp_path):
    assert build_here(checkpoint, tmp_path / "e", backend="inductor")["backend"] == "inductor"
    values = json.loads((tmp_path / "e" / "config.json").read_text())
    (tmp_path / "e" / "config.json").write_text(json.dumps(seal(values | {"backend": "abacus"})))
    with pytest.raises(UserError, match="was built by backend 'abacus', known are tensorrt_llm, tensorrt, inductor"):
        open_engine(tmp_path / "e", LIMIT)


@pytest.mark.parametrize(
    ("flag", "context", "generation"),
    [
        ("gather_context_logits", True, False),
        ("gather_generation_logits", False, True),
        ("gather_all_token_logits", True, True),
    ],
)
def test_gather_flags_let_a_session_return_logits(checkpoint, tmp_path, flag, context, generation):
    build_here(checkpoint, tmp_path / "e", **{flag: True})
    session = open_engine(tmp_path / "e", LIMIT)
    for asked, allowed in (("return_context_logits", context), ("return_generation_logits", generation)):
        request = Request((5, 6, 7), 2, **{asked: True})
        if allowed:
            (result,) = generate(session, [request])
            assert (result.context_logits is not None, result.generation_logits is not None) == (
                asked == "return_context_logits",
                asked == "return_generation_logits",
            )
        else:
            with pytest.raises(UserError, match="build the engine with --gather_"):
                generate(session, [request])


def test_a_missing_compiler_is_named_with_what_to_install(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, found neither.*apt-get install g\+\+"):
        build_here(checkpoint, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_compiler_that_fails_is_named(checkpoint, tmp_path, monkeypatch):
    broken = tmp_path / "broken-g++"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit 0\necho "fatal: no luck" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(UserError, match="could not compile the plugin library: fatal: no luck"):
        build_here(checkpoint, tmp_path / "e")
    assert not (tmp_path / "e").exists()


@pytest.fixture
def damaged(engine_named, tmp_path):
    """A copy of an engine to break."""
    copy = tmp_path / "engine"
    shutil.copytree(engine_named("pre-norm"), copy)
    return copy


def edit_config(engine, **device):
    values = json.loads((engine / "config.json").read_text())
    values["device"] |= device
    (engine / "config.json").write_text(json.dumps(seal(values)))


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ({"torch": "2.99.0"}, r"was built with torch 2\.99\.0, this is torch .*build it again here"),
        (
            {"isa": "avx512", "flags": "sse avx4096"},
            "was built for avx512: avx4096, which this processor lacks; build it again here.*--target_isa",
        ),
    ],
)
def test_an_engine_of_another_torch_or_processor_is_refused(damaged, device, text):
    edit_config(damaged, **device)
    with pytest.raises(UserError, match=text):
        open_engine(damaged, LIMIT)


@pytest.mark.parametrize(
    "change",
    [
        {"device": None},
        {"backend": ["x"]},
        {"pretrained_config": {"hidden_size": 512}},
        {"build_config": {"max_seq_len": 100000}},
        {"build_config": {"tokens_per_block": 64}},
        {"fingerprint": "0"},
    ],
)
def test_a_configuration_changed_after_the_build_is_refused(damaged, change):
    values = json.loads((damaged / "config.json").read_text())
    for name, value in change.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    (damaged / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"config\.json was changed after the build; build it again here"):
        open_engine(damaged, LIMIT)


def test_an_engine_never_replaces_a_checkpoint(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    with pytest.raises(UserError, match="copy"):
        build_here(copy, copy)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


@pytest.mark.parametrize("name", ["config.json", "rank0.engine", "rank0.weights.safetensors", "plugin"])
def test_a_missing_file_of_an_engine_is_named(damaged, name):
    name = json.loads((damaged / "config.json").read_text())["plugin_library"] if name == "plugin" else name
    (damaged / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        open_engine(damaged, LIMIT)


def test_truncated_weights_are_named(damaged):
    with (damaged / "rank0.weights.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(UserError, match=r"rank0\.weights\.safetensors is truncated or not safetensors"):
        open_engine(damaged, LIMIT)


def test_a_checkpoint_given_as_an_engine_is_named(checkpoint):
    with pytest.raises(UserError, match="does not describe an engine"):
        open_engine(checkpoint, LIMIT)


def test_an_engine_runs_after_its_checkpoint_and_source_are_gone(checkpoint, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    build_here(moved, tmp_path / "e")
    shutil.rmtree(moved)
    (result,) = generate(open_engine(tmp_path / "e", LIMIT), [Request((5, 6, 7), 3)])
    assert len(result.output_ids) == 3


def start_build(checkpoint, out, environment):
    return start_python(
        "build.py", "--checkpoint_dir", checkpoint, "--output_dir", out, environment=environment, stdout=None
    )  # fmt: skip


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(checkpoint, tmp_path, stop):
    """SIGTERM while the plugin library compiles, SIGINT with everything cached."""
    own_cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")} if stop == signal.SIGTERM else {}
    process = start_build(checkpoint, tmp_path / "e", own_cache)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".e*")) and time.monotonic() < deadline:  # the directory that grows
        time.sleep(0.05)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else 143)
    assert "Traceback" not in errors
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []


def test_an_interrupt_while_programs_compile_ends_the_compilers_and_leaves_whole_programs(checkpoint, tmp_path):
    """SIGTERM reaches build.py alone, not the compilers, of which several run; one may have ended before it."""
    build_here(checkpoint, tmp_path / "before")  # its plugin library and its timings are used
    cache = tmp_path / "cache"
    shutil.copytree(cache_dir(), cache / "opt_trt", ignore=shutil.ignore_patterns("programs"))
    process = start_build(checkpoint, tmp_path / "e", {"XDG_CACHE_HOME": str(cache)})
    deadline = time.monotonic() + 60
    while not compilers_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert compilers_of(process.pid)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in errors
    assert compilers_of(process.pid) == []
    kept = [p for p in (cache / "opt_trt" / "programs").iterdir() if p.suffix != ".lock"]
    assert len(kept) < 3 and all(is_whole(program) for program in kept)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["before", "cache", "model.cache"]


def compilers_of(pid: int) -> list[str]:
    """Command lines that compile the wrappers of programs, of the children of a process and of orphans."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            command = entry.joinpath("cmdline").read_text()
        except OSError:  # it has just ended
            continue
        if parent in (pid, 1) and ".wrapper.cpp" in command:
            found.append(command)
    return found


def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint, tmp_path, monkeypatch, engine_named):
    engine_named("pre-norm")  # programs are cached: the weights are next

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "e"))

    monkeypatch.setattr(import_module("opt_trt.backends.inductor.builder.builder"), "write_rank", full)
    with pytest.raises(OSError, match="No space left"):
        build_here(checkpoint, tmp_path / "e")
    assert [p.name for p in tmp_path.iterdir() if p.name != "model.cache"] == []
