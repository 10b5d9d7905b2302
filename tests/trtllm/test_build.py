"""`build.py --backend tensorrt_llm` from end to end, TensorRT-LLM being the double of each release."""

from __future__ import annotations

import json
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from opt_trt.backends import build as builder
from opt_trt.backends import choose_backend, load_backend, machine
from opt_trt.backends.trtllm.failures import FAILURES, explain
from opt_trt.backends.trtllm.process import run_builder
from opt_trt.backends.trtllm.release import NEWEST, OLDEST, Release, known_release, missing
from opt_trt.cli import parse
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.convert.convert import convert
from opt_trt.describe.describe import describe
from opt_trt.errors import UserError
from opt_trt.plugins.tune.timing import TimingCache
from tests._commands import run_command
from tests.trtllm._facts import load, releases
from tests.unit._models import Model


def build_there(checkpoint, *flags, backend="tensorrt_llm"):
    argv = ["--checkpoint_dir", str(checkpoint), "--output_dir", "engine", "--backend", backend, *flags]
    builder.build(parse(BuildConfig, argv))
    return json.loads(Path("engine/config.json").read_text())


@pytest.mark.parametrize("release", releases())
@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "deferred", "tp2"])
def test_every_release_builds_what_the_converter_writes(release, name, checkpoints, install_double):
    install_double(release)
    config = build_there(checkpoints(name), "--max_batch_size", "8", "--gemm_plugin", "--log_level", "error")
    assert config["version"] == load(release).version
    assert config["build_config"]["max_batch_size"] == 8
    assert config["pretrained_config"]["quantization"]["quant_algo"] == {"int4": "W4A16"}.get(
        name, "W8A16" if name in ("int8", "deferred") else None
    )
    engines = [path.name for path in sorted(Path("engine").glob("rank*.engine"))]
    assert engines == (["rank0.engine", "rank1.engine"] if name == "tp2" else ["rank0.engine"])
    assert Path("model.cache").exists()


def test_timings_the_embedded_backend_left_do_not_matter(checkpoints, install_double):
    """They are replaced, as the builder does it: the embedded backend keeps its own elsewhere, too."""
    install_double()
    TimingCache("cpu", {"cpu | gemm": {"fp32_1": 1.0}}).save(Path("model.cache"))
    build_there(checkpoints("fp16"), "--log_level", "error")
    assert Path("model.cache").read_bytes() == b"timings"


def test_auto_takes_tensorrt_llm_where_it_is_and_says_nothing(checkpoints, install_double, capsys):
    install_double()
    config = build_there(checkpoints("fp16"), backend="auto")
    assert "backend" not in config
    assert "backend" not in capsys.readouterr().out


def test_auto_falls_to_the_embedded_backend_and_says_why_where_a_gpu_is(checkpoints, capsys, monkeypatch):
    if lacking := load_backend("inductor").missing():
        pytest.skip(f"backend inductor: {lacking}")
    argv = ["--checkpoint_dir", str(checkpoints("fp16")), "--dry_run"]
    builder.build(parse(BuildConfig, argv))
    assert capsys.readouterr().out.startswith("backend inductor, for this CPU\n")
    builder.build(parse(BuildConfig, [*argv, "--backend", "inductor"]))
    assert "tensorrt_llm" not in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(builder, "load_backend", lambda name: SimpleNamespace(build=lambda *_: None))
    builder.build(parse(BuildConfig, argv))
    out = capsys.readouterr().out
    assert out.count("backend inductor (tensorrt_llm: not installed; pip install tensorrt_llm==1.2.1") == 1
    assert out.count("tensorrt_llm") == out.splitlines()[0].count("tensorrt_llm")


def test_without_the_package_the_command_ends_with_one_line_and_exit_2(checkpoints, tmp_path):
    files = ("--checkpoint_dir", checkpoints("fp16"), "--output_dir", tmp_path / "e")
    code, said = run_command("build", *files, "--backend", "tensorrt_llm")
    assert code == 2 and said.count("\n") == 1
    assert said.startswith("error: backend tensorrt_llm: not installed; pip install tensorrt_llm==1.2.1")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("release", releases())
def test_a_dry_run_prints_the_call_of_any_release(release, checkpoints, capsys, tmp_path, monkeypatch):
    """And the release's builder takes the call as printed."""
    monkeypatch.chdir(tmp_path)
    version = load(release).version
    argv = ["--checkpoint_dir", str(checkpoints("fp16")), "--backend", "tensorrt_llm", "--dry_run",
            "--tensorrt_llm_version", version]  # fmt: skip
    builder.build(parse(BuildConfig, argv))
    told, call = capsys.readouterr().out.splitlines()
    assert told == f"TensorRT-LLM {version} would build 1 rank(s) with"
    assert call.startswith("python -m tensorrt_llm.commands.build --checkpoint_dir ")
    assert ("--max_seq_len 1024" in call) == (release != "0.10")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_without_the_package_shows_the_newest_release(checkpoints, capsys):
    argv = ["--checkpoint_dir", str(checkpoints("fp16")), "--backend", "tensorrt_llm", "--dry_run"]
    builder.build(parse(BuildConfig, argv))
    assert capsys.readouterr().out.startswith("TensorRT-LLM 1.2 would build")


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("0.9.0", "TensorRT-LLM 0.9.0: builders of 0.10 to 1.2 are known; pip install"),
        ("1.3.0rc1", "TensorRT-LLM 1.3.0rc1: builders"),
        ("new", "expected a version of TensorRT-LLM like 1.2.1, found 'new'"),
    ],
)
def test_a_release_nothing_is_known_of_is_named(version, text):
    with pytest.raises(UserError, match=text):
        known_release(version)


def test_releases_are_told_apart_by_their_first_two_numbers():
    assert Release(0, 10) == OLDEST and Release(1, 2) == NEWEST
    assert known_release("1.2.0rc2") == Release(1, 2) and known_release("0.21.0") == Release(0, 21)


def test_what_is_missing_is_named(install_double, monkeypatch):
    package = install_double()
    assert missing() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing() == f"no GPU is visible to torch {torch.__version__}; see nvidia-smi"
    (package / "version.py").write_text('__version__ = "0.7.1"')
    assert missing().startswith("TensorRT-LLM 0.7.1: builders of 0.10 to 1.2 are known")
    (package / "commands" / "build.py").unlink()
    (package / "version.py").write_text('__version__ = "1.3.0"')
    assert missing().startswith(
        "1.3.0, installed here, makes no TensorRT engines any more, 1.2.1 is the last that does"
    )
    (package / "version.py").write_text("")
    assert missing().startswith(f"{package / 'version.py'} does not say which release it is")


def test_an_engine_can_be_described(checkpoints, install_double, capsys):
    install_double()
    build_there(checkpoints("int4"), "--log_level", "error", "--max_batch_size", "8")
    describe(DescribeConfig(directories=("engine",)))
    out = capsys.readouterr().out
    assert out.startswith("TensorRT engine engine\n") and "built         TensorRT-LLM 1.2.1\n" in out
    assert "max_batch_size 8, max_input_len 1024, max_seq_len 1024" in out and "int4" in out
    with pytest.raises(UserError, match="is a TensorRT engine, whose tensors only TensorRT reads; drop --rank"):
        describe(DescribeConfig(directories=("engine",), rank=0))


def test_engines_made_for_another_release_or_gpu_are_not_taken_for_ours(install_double):
    install_double()
    first = machine()
    install_double(SM="90")
    second = machine()
    install_double("1.0")
    assert len({str(rows) for rows in (first, second, machine())}) == 3


def test_a_version_is_for_dry_runs(checkpoints, install_double):
    install_double()
    with pytest.raises(
        UserError, match=r"--tensorrt_llm_version 1\.1\.0 shows a call with --dry_run, 1\.2\.1 is installed"
    ):
        build_there(checkpoints("fp16"), "--tensorrt_llm_version", "1.1.0")
    build_there(checkpoints("fp16"), "--tensorrt_llm_version", "1.2.1", "--log_level", "error")


@pytest.mark.parametrize(
    ("name", "double", "flags", "text"),
    [
        ("pp2", {}, [], r"has pp_size 2, and .* no pipeline parallelism; convert with --tp_size 2 --pp_size 1"),
        ("deferred", {"SM": "100"}, [], r"has quant_algo W8A16, which TensorRT-LLM does not build for SM 100"),
        ("int8", {"SM": "119"}, [], "does not build for SM 119"),
        ("int8", {"SM": "90"}, [], r"packed for SM 80, .* SM 90, would compute garbage .*repack .*--target_sm 90"),
        ("hopper", {"SM": "80"}, [], r"packed for SM 90, .*--target_sm 80"),
        ("hopper", {"SM": "90", "release": "0.20"}, [], "and 0.21 may read another layout; convert with --defer_quant"),
        ("fp16", {}, ["--multiple_profiles", "--opt_num_tokens", "8"], "--multiple_profiles enable chooses its own"),
        ("fp16", {}, ["--deterministic"], "--deterministic is not supported: TensorRT chooses its tactics by their"),
        ("fp16", {}, ["--device", "cpu"], "--device cpu is not supported: TensorRT engines run on GPUs; give"),
        ("fp16", {}, ["--target_isa", "avx2"], "--target_isa avx2 is not supported: TensorRT engines"),
        ("fp16", {}, ["--lm_head_precision", "int8"], "--lm_head_precision int8 is not supported"),
        ("fp16", {}, ["--paged_kv_cache", "disable", "--kv_cache_type", "paged"], "--paged_kv_cache disable is --kv_c"),
        ("fp16", {}, ["--gpt_attention_plugin", "disable", "--paged_kv_cache"], "--kv_cache_type paged needs the att"),
        ("fp16", {}, ["--gpt_attention_plugin", "disable", "--remove_input_padding"], "--remove_input_padding enable "),
        ("fp16", {}, ["--context_fmha_fp32_acc"], r"take it, not 1\.2's; .*give --enable_context_fmha_fp32_acc to run"),
        ("fp16", {}, ["--lookup_plugin", "float16"], "0.10 to 0.11 take it, not 1.2's; embedding lookup needs no"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_before_the_builder_starts(
    name, double, flags, text, checkpoints, install_double, monkeypatch
):
    install_double(double.pop("release", "1.2"), **double)
    monkeypatch.setattr(import_module("opt_trt.backends.trtllm.engine_build"), "run_builder", None)
    with pytest.raises(UserError, match=text):
        build_there(checkpoints(name), *flags)
    assert not Path("engine").exists()


@pytest.mark.parametrize(("target", "sm"), [("int8", "89"), ("hopper", "90"), ("deferred", "90"), ("fp16", "100")])
def test_gpus_that_read_the_same_layout_are_not_refused(target, sm, checkpoints, install_double):
    install_double(SM=sm)
    assert build_there(checkpoints(target), "--log_level", "error")["version"] == "1.2.1"


def test_linears_the_loader_would_round_up_are_refused(install_double, tmp_path):
    install_double()
    quantize = {"use_weight_only": True, "defer_quantization": True, "log_level": "error"}
    convert(ConvertConfig(model_dir=str(Model().write(tmp_path / "m")), output_dir=str(tmp_path / "c"), **quantize))
    with pytest.raises(UserError, match=r"multiples of 64 features a rank, found .*mlp\.fc\.weight \[40, 16\]"):
        build_there(tmp_path / "c")


def test_a_missing_rank_and_a_ragged_vocabulary_are_named(checkpoints, install_double, tmp_path):
    install_double()
    copy = shutil.copytree(checkpoints("tp2"), tmp_path / "c")
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"vocab_size": 2563}))
    with pytest.raises(
        UserError, match=r"transformer\.vocab_embedding\.weight is F16\[1280, 256\], expected F16\[1282"
    ):
        build_there(copy)
    (copy / "rank1.safetensors").unlink()
    with pytest.raises(UserError, match=r"has world_size 2, but the rank files there are rank0\.safetensors"):
        build_there(copy)


LINES = {  # of the builder, TensorRT, Python and the system, with what must be said of them
    "build.py: error: unrecognized arguments: --new": "flags are not those known of this release",
    "RuntimeError: cannot load MPI library": "there is no MPI it can load; install the system's",
    "ImportError: libmpi.so.40: cannot open shared object file": "there is no MPI it can load",
    "ImportError: libnvinfer.so.10: cannot open shared object file": "its tensorrt, torch or CUDA is of another",
    "IRuntime::deserializeCudaEngine: Error Code 1: Version tag does not match": "is of another TensorRT; delete",
    "INT8/INT4 quantization is not supported on SM>=100.": "convert without --use_weight_only",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB": "memory ran out; give smaller --max_batch",
    "Cuda Runtime (out of memory)": "memory ran out",
    "Encounter error 'The value updated is not the same shape' for parameter 'lm_head.weight'": "which pads it",
    "Encounter error 'The value updated is not the same shape' for parameter 'x.qkv.weight'": "not of the shape",
    "RuntimeError: Required but not provided tensors:{'lm_head.weight'}": "the checkpoint lacks tensors",
    "    assert os.path.isfile(weights_path)": "a rank of the checkpoint is missing",
    "ValueError: max_workers must be greater than 0": "no GPU is visible to it",
    "TypeError: QuantConfig.__init__() got an unexpected keyword argument 'new'": "has a key unknown to this release",
    "OSError: [Errno 28] No space left on device": "the disk is full",
}


@pytest.mark.parametrize(("line", "advice"), LINES.items())
def test_the_compilers_failures_become_one_line_with_advice(line, advice, checkpoints, install_double, capsys):
    install_double(FAILURE=line)
    with pytest.raises(UserError) as error:
        build_there(checkpoints("fp16"))
    told = str(error.value)
    assert told.startswith("TensorRT-LLM 1.2.1's builder failed (exit code 1): ") and advice in told
    assert line.strip() in told and "\n" not in told
    assert "Traceback" in capsys.readouterr().err, "the log is passed on"
    assert not Path("engine").exists()


def test_no_gpu_for_the_builder_is_one_line(checkpoints, install_double):
    install_double(GPUS="0")
    with pytest.raises(UserError, match=r"no GPU is visible to it; see nvidia-smi and CUDA_VISIBLE_DEVICES"):
        build_there(checkpoints("fp16"), "--log_level", "error")


def test_an_unknown_failure_tells_the_last_error_and_where_to_look():
    told = str(explain(["[TRT-LLM] [I] fine", "ValueError: strange", "bye"], 1, "1.2.1"))
    assert told == (
        "TensorRT-LLM 1.2.1's builder failed (exit code 1): ValueError: strange; its log above says more, "
        "--log_level verbose most"
    )
    assert "the system killed it" in str(explain(["building"], -9, "1.2.1"))
    assert "it said nothing" in str(explain([], 1, "1.2.1"))


def test_every_known_failure_can_be_told():
    for failure in FAILURES:
        assert any(failure.advice in explain([line], 1, "1.2.1").text for line in LINES), failure


def test_a_builder_that_writes_nothing_is_a_failure(checkpoints, install_double):
    package = install_double()
    (package / "commands" / "build.py").write_text("print('done')")
    with pytest.raises(UserError, match=r"builder failed \(exit code 0\): rank0\.engine was not written"):
        build_there(checkpoints("fp16"), "--log_level", "error")


def test_the_log_is_shown_at_talkative_levels_and_ranks_are_counted(checkpoints, install_double, capsys):
    install_double()
    build_there(checkpoints("tp2"))
    assert capsys.readouterr().err.count("Total time of building Unnamed Network 0") == 2
    shutil.rmtree("engine")
    build_there(checkpoints("tp2"), "--log_level", "warning")
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out == ""


def test_an_engine_is_replaced_and_a_checkpoint_is_not(checkpoints, install_double, tmp_path):
    install_double()
    build_there(checkpoints("tp2"), "--log_level", "error")
    build_there(checkpoints("fp16"), "--log_level", "error")
    assert sorted(path.name for path in Path("engine").iterdir()) == ["config.json", "rank0.engine", "tokenizer"]
    copy = shutil.copytree(checkpoints("fp16"), tmp_path / "c")
    with pytest.raises(UserError, match="c"):
        builder.build(parse(BuildConfig, ["--checkpoint_dir", str(copy), "--output_dir", str(copy)]))
    assert (copy / "rank0.safetensors").exists()


def test_the_builder_and_what_it_started_end_with_us(tmp_path):
    told, script = tmp_path / "pid", tmp_path / "builder.py"
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(told)!r}).write_text(str(child.pid))\n"
        "print('building', flush=True)\n"
        "time.sleep(600)\n"
    )

    def stop(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("opt_trt.backends.trtllm.process.Bar.write", stop)  # while its first line is passed on
        run_builder((sys.executable, str(script)), 1, "info")
    state = Path(f"/proc/{told.read_text()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_backend_asked_for_by_name_is_not_exchanged(install_double, monkeypatch):
    install_double()
    assert choose_backend("auto").name == choose_backend("tensorrt_llm").name == "tensorrt_llm"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="backend tensorrt_llm: no GPU is visible"):
        choose_backend("tensorrt_llm")
