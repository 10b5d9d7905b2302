"""The conversion of a Hugging Face directory to a checkpoint of one rank: flags, refusals, interruptions."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import opt_trt
from opt_trt.checkpoint import writer
from opt_trt.checkpoint.reader import read_config
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from tests._commands import run_command
from tests._processes import run as run_program
from tests._processes import run_python, start_python
from tests.unit._models import Model

REPOSITORY = Path(opt_trt.__file__).parent.parent
GOLDEN = Path(__file__).parents[2] / "golden"


def run(model_dir: Path, output_dir: Path, **flags: Any) -> dict[str, torch.Tensor]:
    """Convert and read the result back with the format's own library."""
    convert(ConvertConfig(model_dir=str(model_dir), output_dir=str(output_dir), **flags))
    return load_file(output_dir / "rank0.safetensors")


ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def test_folded_tables_are_the_rounded_product(tmp_path: Path) -> None:
    """At most 0.2 % of elements differ, by 1 ulp: an fp32 sum depends on its order, so it may round to a neighbour."""
    source = {
        n.removeprefix("model."): t.double()
        for n, t in load_file(GOLDEN / "opt-tiny-postnorm/model.safetensors").items()
    }
    embedding = source["decoder.embed_tokens.weight"]
    expected = {
        "transformer.vocab_embedding.weight": embedding @ source["decoder.project_in.weight"].T,
        "lm_head.weight": embedding @ source["decoder.project_out.weight"],
    }
    tensors = run(GOLDEN / "opt-tiny-postnorm", tmp_path / "out")
    for name, product in expected.items():
        ulps = (tensors[name].view(torch.int16).int() - product.half().view(torch.int16).int()).abs()
        assert ulps.max() <= 1
        assert (ulps > 0).float().mean() <= 0.002


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize(
    ("kind", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3), ("legacy", 1), ("legacy", 2)]
)
def test_every_layout_converts_to_the_same_bytes(tmp_path: Path, kind: str, shards: int, prefix: str) -> None:
    reference = run(Model().write(tmp_path / "reference"), tmp_path / "expected")
    found = run(Model().write(tmp_path / "model", kind, shards, prefix), tmp_path / "found")
    assert found.keys() == reference.keys()
    assert all(torch.equal(found[name], reference[name]) for name in reference)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("tables", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
@pytest.mark.parametrize("width", [16, 8])
def test_every_spelling_of_the_tied_table_converts_to_the_same_bytes(
    tmp_path: Path, prefix: str, tables: tuple[str, ...], width: int
) -> None:
    """Hubs have models with `decoder.*` or `model.decoder.*`, and with the table, the head or both."""
    model = Model(width=width, pre_norm=width == 16)
    reference = run(model.write(tmp_path / "reference"), tmp_path / "expected")
    table = model.tensors.pop("model.decoder.embed_tokens.weight")
    names = {"embed_tokens": "model.decoder.embed_tokens.weight", "lm_head": "lm_head.weight"}
    model.tensors |= {names[name]: table.clone() for name in tables}
    found = run(model.write(tmp_path / "model", prefix=prefix), tmp_path / "found")
    assert all(torch.equal(found[name], reference[name]) for name in reference)


def test_config_has_tensorrt_llms_keys_and_the_models_values(tmp_path: Path) -> None:
    run(Model().write(tmp_path / "model"), tmp_path / "out", dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "architecture": "OPTForCausalLM", "dtype": "bfloat16", "num_hidden_layers": 2, "num_attention_heads": 4,
        "hidden_size": 16, "intermediate_size": 40, "vocab_size": 48, "max_position_embeddings": 12,
        "do_layer_norm_before": True, "logits_dtype": "float32", "hidden_act": "relu", "norm_epsilon": 1e-05,
        "position_embedding_type": "learned_absolute", "quantization": {"quant_algo": None},
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1}, "use_parallel_embedding": False,
        "embedding_sharding_dim": 0, "pp_layers": None, "remove_final_layer_norm": False,
        "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "target_sm": None, "defer_quantization": False,
    }  # fmt: skip


def test_a_model_without_final_layer_norm_has_no_ln_f(tmp_path: Path) -> None:
    model = Model(config={"_remove_final_layer_norm": True})
    tensors = run(model.write(tmp_path / "model"), tmp_path / "out")
    assert not [name for name in tensors if "ln_f" in name]
    assert read_config(tmp_path / "out").remove_final_layer_norm


def test_parallel_embedding_is_recorded(tmp_path: Path) -> None:
    run(Model().write(tmp_path / "model"), tmp_path / "out", use_parallel_embedding=True, embedding_sharding_dim=1)
    config = read_config(tmp_path / "out")
    assert (config.use_parallel_embedding, config.embedding_sharding_dim) == (True, 1)


def test_parallel_embedding_with_projections_is_switched_off_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(width=8, pre_norm=False).write(tmp_path / "model")
    run(model, tmp_path / "out", use_parallel_embedding=True, log_level="internal_error")
    assert "WARNING: --use_parallel_embedding does not apply" in capsys.readouterr().err
    assert not read_config(tmp_path / "out").use_parallel_embedding


def test_one_line_says_what_was_written_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Model().write(tmp_path / "model"), tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1
    assert "29 tensors" in printed.out and f"python -m opt_trt build --checkpoint_dir {tmp_path / 'out'}" in printed.out


def test_the_next_command_can_be_pasted_into_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Model().write(tmp_path / "model"), tmp_path / "my out")
    assert f"--checkpoint_dir '{tmp_path / 'my out'}' --output_dir" in capsys.readouterr().out


def test_log_level_warning_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Model().write(tmp_path / "model"), tmp_path / "out", log_level="warning")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("where", ["model", ".", "model/../model"])
def test_the_source_is_never_replaced(tmp_path: Path, where: str) -> None:
    model = Model().write(tmp_path / "model")
    with pytest.raises(UserError, match="would replace --model_dir"):
        run(model, tmp_path / where)
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors"]


def test_output_inside_the_source_leaves_it_whole(tmp_path: Path) -> None:
    model = Model().write(tmp_path / "model")
    run(model, model / "tllm")
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors", "tllm"]


def test_a_checkpoint_is_replaced_and_another_model_is_not(tmp_path: Path) -> None:
    model, other = Model().write(tmp_path / "model"), Model().write(tmp_path / "other")
    run(model, tmp_path / "out")
    assert run(model, tmp_path / "out", dtype="float32")["lm_head.weight"].dtype == torch.float32
    with pytest.raises(UserError, match=r"other exists and is not an earlier output.*model\.safetensors"):
        run(model, other)


def test_a_failed_conversion_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    run(Model().write(tmp_path / "model"), tmp_path / "out")
    before = (tmp_path / "out" / "rank0.safetensors").read_bytes()
    damaged = Model()
    damaged.tensors["model.decoder.layers.1.fc2.bias"][3] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        run(damaged.write(tmp_path / "model"), tmp_path / "out")
    assert (tmp_path / "out" / "rank0.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_a_disk_that_cannot_take_it_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("opt_trt.host.disk.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"out needs 0\.00 GB, .* has 0\.00 GB free"):
        run(Model().write(tmp_path / "model"), tmp_path / "out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_the_old_and_says_what_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run(Model().write(tmp_path / "model"), tmp_path / "out")
    before, room, write = (tmp_path / "out" / "rank0.safetensors").read_bytes(), 2 << 20, writer.write_all

    def filling(descriptor: int, view: memoryview, offset: int) -> None:
        nonlocal room
        room -= len(view)
        if room < 0:
            raise OSError(number, os.strerror(number))
        write(descriptor, view, offset)

    monkeypatch.setattr(writer, "write_all", filling)
    model = Model(vocab=50_000).write(tmp_path / "model")  # two tables of 1.6 MB in fp16: the second does not fit
    says = (
        rf"^/.*/rank0\.safetensors: {os.strerror(number)}; 0\.002 of 0\.003 GB were .*: free as much in {tmp_path} or"
    )
    with pytest.raises(UserError, match=says):
        run(model, tmp_path / "out")
    assert (tmp_path / "out" / "rank0.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if run_program("mount", "-t", "tmpfs", "-o", "size=2m", "none", disk).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    assert run_program("umount", disk).returncode == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_file_system_ends_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path, workers: int
) -> None:
    monkeypatch.setattr(
        "opt_trt.convert.output_directory.check_space", lambda *_: None
    )  # as if another program filled the disk meanwhile
    model = Model(vocab=50_000).write(tmp_path / "model")
    with pytest.raises(UserError, match=r"rank0\.safetensors: No space left on device; 0\.001 of 0\.003 GB"):
        run(model, small_disk / "a" / "out", workers=workers)
    assert list(small_disk.iterdir()) == []


def test_a_write_refused_by_the_system_is_one_line_and_exit_2(tmp_path: Path) -> None:
    import resource

    model = Model(vocab=4000).write(tmp_path / "model")
    limit = (100_000, 100_000)
    done = run_python(
        "convert_checkpoint.py", "--model_dir", model, "--output_dir", tmp_path / "out", environment=ONE_THREAD,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: File too large") and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_cannot_be_made_is_one_line_and_exit_2(tmp_path: Path) -> None:
    code, said = run_command("convert", "--model_dir", Model().write(tmp_path / "model"), "--output_dir", "/proc/out")
    assert code == 2
    assert said.startswith("error: ") and said.count("\n") == 1


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    done = run_python("convert_checkpoint.py", "--help", environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0 and "--model_dir" in done.stdout


SLOW = """
import time, runpy, sys
from opt_trt.checkpoint import writer
write = writer.write_all
def slow(descriptor, view, offset):
    write(descriptor, view, offset)
    if offset > 5000:
        sys.stdout.write("writing\\n")  # one write, because several workers write at once
        sys.stdout.flush()
        time.sleep(3)  # for each of about twenty tensors; a worker thread finishes its current one
writer.write_all = slow
sys.argv[0] = "convert_checkpoint.py"
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


WAITING = SLOW.replace("time.sleep(3)", "sys.stdin.readline()")  # at every tensor; ends with its standard input


def start(code: str, *arguments: str | Path) -> Popen[str]:
    """A conversion in a process of its own, in the middle of writing."""
    process = start_python("-c", code, "convert_checkpoint.py", *arguments, stdin=PIPE, environment=ONE_THREAD)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals, status: int, workers: str) -> None:
    model = Model().write(tmp_path / "model")
    process = start(SLOW, "--model_dir", model, "--output_dir", tmp_path / "out", "--workers", workers)
    assert list(tmp_path.glob(".out.*/rank0.safetensors"))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr.count("\n")) == (status, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_killed_conversion_leaves_nothing_that_looks_whole_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    model = Model().write(tmp_path / "model")
    before = run(model, tmp_path / "out")["lm_head.weight"]
    process = start(WAITING, "--model_dir", model, "--output_dir", tmp_path / "out", "--dtype", "float32")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert torch.equal(load_file(tmp_path / "out" / "rank0.safetensors")["lm_head.weight"], before)
    assert [p.name[:5] for p in tmp_path.iterdir() if p.name not in ("model", "out")] == [".out."]
    assert run(model, tmp_path / "out", dtype="float32")["lm_head.weight"].dtype == torch.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_of_two_conversions_into_one_directory_the_second_is_refused_by_name(tmp_path: Path) -> None:
    model = Model().write(tmp_path / "model")
    first = start(
        WAITING, "--model_dir", model, "--output_dir", tmp_path / "out", "--dtype", "float32", "--tp_size", "2"
    )
    code, said = run_command("convert", "--model_dir", model, "--output_dir", tmp_path / "out")
    assert code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: {tmp_path / 'out'} is being written by another process, in .out.")
    first.communicate()
    assert first.returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
    assert read_config(tmp_path / "out").mapping.tp_size == 2
    assert all(
        load_file(tmp_path / "out" / f"rank{r}.safetensors")["lm_head.weight"].dtype == torch.float32 for r in (0, 1)
    )
