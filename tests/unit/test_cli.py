"""Flags come from the dataclass fields; every flag acts or is refused by name."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from typing import NoReturn

import pytest

from opt_trt.cli import Terminated, build_parser, parse, run_main
from opt_trt.config.backend_answers import ANSWERS, PROPER_ANSWERS, RTX_ANSWERS
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.config.describe_flags import DescribeConfig
from opt_trt.config.export_flags import ExportConfig
from opt_trt.config.flags import Refusal
from opt_trt.config.run_flags import RunConfig
from opt_trt.config.runtime_flags import EMBEDDED, check_embedded
from opt_trt.config.summarize_flags import SummarizeConfig
from opt_trt.errors import CheckFailed, UserError
from opt_trt.version import __version__
from tests._processes import ROOT, run, run_python, start_python
from tests.unit._models import Model

REQUIRED = {
    ConvertConfig: ["--model_dir", "m"],
    BuildConfig: ["--checkpoint_dir", "c"],
    RunConfig: ["--max_output_len", "5"],
    SummarizeConfig: ["--test_trt_llm"],
    DescribeConfig: ["d"],
    ExportConfig: ["--checkpoint_dir", "c"],
}
MODULES = ["opt_trt.describe", "opt_trt.export_hf", "opt_trt.repack"]
SCRIPTS = [
    ["convert_checkpoint.py"], ["build.py"], ["run.py"], ["summarize.py"], *(["-m", module] for module in MODULES),
]  # fmt: skip
HELP_WITHOUT_TORCH = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
try:
    run(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code
assert "torch" not in sys.modules
"""
REFUSALS = [(c, name, refusal) for c in REQUIRED for name, refusal in getattr(c, "REFUSED", {}).items()]


@pytest.mark.parametrize(("config", "name", "refusal"), REFUSALS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_flag_that_cannot_act_is_refused_by_name_with_the_reason(config, name, refusal):
    option = name if name.startswith("-") else f"--{name}"
    with pytest.raises(UserError, match=f"^{option} unheard_of is not supported: "):
        parse(config, [*REQUIRED[config], option, "unheard_of"])


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (Refusal("it is so"), "--flag 3 is not supported: it is so; drop the flag"),
        (
            Refusal("it is so", ("1", "2")),
            "--flag 3 is not supported: it is so; drop the flag or give --flag 1 or --flag 2",
        ),
        (
            Refusal("it is so", ("1",), advice="convert with --flag"),
            "--flag 3 is not supported: it is so; convert with --flag or drop the flag or give --flag 1",
        ),
    ],
)
def test_a_refusal_says_everything_a_person_can_do(refusal, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        refusal.check("--flag", "3")


def test_reasons_give_no_advice_for_dropping_the_flag_to_follow():
    given = [
        *REFUSALS,
        *(
            (None, name, refusal)
            for table in (*EMBEDDED.values(), *ANSWERS.values(), RTX_ANSWERS, PROPER_ANSWERS)
            for name, refusal in table.items()
        ),
    ]
    assert not [name for _, name, refusal in given if re.search("(^|[:;] )(give|use|convert) ", refusal.reason)]


@pytest.mark.parametrize(("config", "name", "refusal"), REFUSALS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_refused_flag_is_accepted_with_a_value_that_asks_for_what_happens_anyway(config, name, refusal):
    for value in refusal.neutral:
        assert parse(config, [*REQUIRED[config], f"--{name}", *value.split()]) == parse(config, REQUIRED[config])


@pytest.mark.parametrize("config", REQUIRED)
def test_every_field_has_help_and_its_default(config):
    text = build_parser(config).format_help()
    for f in fields(config):
        flag = f.metadata["flag"]
        assert (flag.positional or f"--{f.name}") in text and flag.help


@pytest.mark.parametrize("config", REQUIRED)
def test_an_unknown_flag_is_named(config):
    with pytest.raises(UserError, match="--unheard_of"):
        parse(config, [*REQUIRED[config], "--unheard_of"])


@pytest.mark.parametrize("config", REQUIRED)
def test_an_abbreviated_flag_is_not_guessed(config):
    with pytest.raises(UserError, match="--log_lev"):
        parse(config, [*REQUIRED[config], "--log_lev", "info"])


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], "auto"),
        (["--gemm_plugin"], "auto"),
        (["--gemm_plugin", "float16"], "float16"),
        (["--gemm_plugin", "disable"], "disable"),
    ],
)
def test_a_bare_plugin_switch_means_enable(flags, value):
    assert parse(BuildConfig, [*REQUIRED[BuildConfig], *flags]).gemm_plugin == value


@pytest.mark.parametrize("flag", ["--context_fmha", "--enable_context_fmha"])
def test_context_fmha_without_the_attention_plugin_is_an_error(flag):
    with pytest.raises(UserError, match="needs the attention plugin"):
        parse(BuildConfig, [*REQUIRED[BuildConfig], flag, "--gpt_attention_plugin", "disable"])


@pytest.mark.parametrize(
    ("config", "argv", "text"),
    [
        (ConvertConfig, [], "--model_dir is required"),
        (BuildConfig, [], "--checkpoint_dir is required"),
        (RunConfig, [], "--max_output_len is required"),
        (SummarizeConfig, [], "nothing to do"),
        (
            BuildConfig,
            ["--checkpoint_dir", "c", "--max_batch_size", "0"],
            "--max_batch_size must be at least 1, found 0",
        ),
        (BuildConfig, ["--checkpoint_dir", "c", "--max_batch_size", "x"], "max_batch_size: invalid int value"),
        (SummarizeConfig, ["--test_hf"], "--test_hf needs --hf_model_dir"),
        (
            SummarizeConfig,
            ["--test_hf", "--hf_model_dir", "m", "--check_accuracy"],
            "--check_accuracy checks the engine",
        ),
        (
            BuildConfig,
            ["--checkpoint_dir", "c", "--deterministic", "--gemm_plugin", "disable"],
            "--deterministic needs the plugins' kernels",
        ),
        (SummarizeConfig, ["--test_trt_llm", "--max_rouge1_drop", "1"], "--max_rouge1_drop compares"),
        (SummarizeConfig, ["--test_trt_llm", "--engine_dir", "a/e", "b/e"], "names of their directories, found e, e"),
        (
            SummarizeConfig,
            ["--test_trt_llm", "--engine_dir", "a", "b", "c", "--tensorrt_llm_rouge1_threshold", "1", "2"],
            "--tensorrt_llm_rouge1_threshold takes one limit or one for each of 3, found 2",
        ),
        (RunConfig, ["--max_output_len", "0"], "--max_output_len must be at least 1"),
        (RunConfig, ["--max_output_len", "1", "--kv_cache_free_gpu_memory_fraction", "0"], "must be above 0"),
        (
            BuildConfig,
            ["--checkpoint_dir", "c", "--opt_num_tokens", "-5"],
            "--opt_num_tokens must be at least 1, found -5",
        ),
        (ConvertConfig, ["--model_dir", "m", "--dtype", "int3"], "invalid choice: 'int3'"),
        (ExportConfig, [], "--checkpoint_dir is required"),
        (ExportConfig, ["--checkpoint_dir", "c", "--max_shard_size", "5TB"], "a size like 500MB or 5GB, found '5TB'"),
        (ExportConfig, ["--checkpoint_dir", "c", "--max_shard_size", "0"], "at least 1 byte, found '0'"),
        (DescribeConfig, [], "expected one directory, found none"),
        (DescribeConfig, ["a", "b"], "expected one directory, found a b; give --compare to compare two"),
        (DescribeConfig, ["--compare", "a"], "expected two directories, found a$"),
        (DescribeConfig, ["--compare", "a", "b", "--rank", "0"], "--rank lists one directory, --compare compares"),
    ],
)
def test_values_that_do_not_fit_are_named(config, argv, text):
    with pytest.raises(UserError, match=text):
        parse(config, argv)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (CheckFailed("x"), 1),
        (UserError("x"), 2),
        (OSError(28, "No space left", "f"), 2),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
    ],
)
def test_exit_codes(error, code, capsys):
    def main(config):
        if error is not None:
            raise error

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as exit_:
            run_main(main, ConvertConfig, REQUIRED[ConvertConfig])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert exit_.value.code == code
    assert capsys.readouterr().err.count("\n") == (error is not None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(28, "No space left", "f"),
            "No space left (f); free space or fix the path, then run the command again",
        ),
        (PermissionError(13, "Not yours", "f"), "Not yours (f); give access to it, then run the command again"),
    ],
)
def test_what_the_system_refuses_comes_with_advice(error, line, capsys):
    def main(config):
        raise error

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            run_main(main, ConvertConfig, REQUIRED[ConvertConfig])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_note_says_what_a_neutral_flag_means_here(capsys):
    check_embedded(parse(RunConfig, [*REQUIRED[RunConfig], "--enable_context_fmha_fp32_acc"]).runtime_options())
    assert "always accumulates in fp32" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["convert_checkpoint.py", "build.py", "run.py", "summarize.py", *MODULES])
def test_help_is_instant_because_torch_is_not_loaded(script):
    result = run_python("-c", HELP_WITHOUT_TORCH, script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", ["convert_checkpoint.py", "build.py", "run.py", "summarize.py"])
def test_a_mistake_costs_one_line_and_exit_code_2(script):
    result = run_python(script, "--nonsense")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("module", MODULES)
def test_a_module_names_itself_as_it_was_called(module):
    result = run_python("-m", module, "--nonsense")
    assert result.returncode == 2
    assert result.stderr == f"error: unrecognized arguments: --nonsense; python -m {module} --help lists the flags\n"


PRINTS = """
import sys
from opt_trt.cli import run_main
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.errors import CheckFailed, UserError
def main(config):
    for line in range({lines}):
        print(line)
    {then}
run_main(main, ConvertConfig, ["--model_dir", "m"])
"""


BUFFERED = {"PYTHONUNBUFFERED": ""}  # as commands are usually started


def run_unread(argv: list[str], stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run with a standard output that is closed at its other end from the beginning."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return run_python(*argv, environment=BUFFERED, stdout=writer, stderr=stderr)
    finally:
        os.close(writer)


@pytest.mark.parametrize("script", [*SCRIPTS, ["-m", "opt_trt"], ["-m", "opt_trt", "run"]])
def test_a_command_whose_output_nobody_reads_ends_quietly(script):
    result = run_unread([*script, "--help"])
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("lines", [1, 100_000])  # noticed at the end, or in the middle
@pytest.mark.parametrize(
    ("then", "code", "says"),
    [
        ("pass", 141, ""),
        ("raise UserError('x')", 2, "error: x\n"),
        ("raise CheckFailed('x')", 1, "error: x\n"),
        ("raise KeyboardInterrupt", 130, "interrupted; nothing half-written was left\n"),
    ],
)
def test_what_a_command_found_out_stands_whoever_reads_its_output(lines, then, code, says):
    result = run_unread(["-c", PRINTS.format(lines=lines, then=then)])
    assert (result.returncode, result.stderr) == ((code, says) if lines == 1 else (141, ""))
    if lines == 1:
        assert run_unread(["-c", PRINTS.format(lines=lines, then=then)], stderr=subprocess.STDOUT).returncode == code


def test_the_first_line_of_many_is_read_and_no_more():
    with start_python("-c", PRINTS.format(lines=100_000, then="pass")) as process:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, "")


def test_a_full_disk_behind_the_output_costs_one_line():
    with open("/dev/full", "w") as full:
        result = run_python("-c", PRINTS.format(lines=1, then="pass"), stdout=full)
    assert result.returncode == 2
    assert result.stderr == "error: No space left on device; free space or fix the path, then run the command again\n"


def test_a_command_started_without_an_output_works():
    result = run("bash", "-c", 'exec "$0" -c "$1" >&-', sys.executable, PRINTS.format(lines=1, then="pass"))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "code", "shown", "error"),
    [
        ("", 0, "usage: python -m opt_trt COMMAND", ""),
        ("--help", 0, "usage: python -m opt_trt COMMAND", ""),
        ("--version", 0, f"opt_trt {__version__}\n", ""),
        ("nope", 2, "", "error: expected a command, found 'nope'; known are convert, "),
        ("run --nonsense", 2, "", "error: unrecognized arguments: --nonsense; python -m opt_trt run --help lists "),
        ("sumarize", 2, "", "error: expected a command, found 'sumarize'; did you mean summarize?\n"),
        ("export-hf", 2, "", "error: --checkpoint_dir is required"),
        ("nope 2>&-", 2, "", ""),  # nothing is printed to the other output instead
        ("--version >/dev/full", 2, "", "error: No space left on device"),
    ],
)
def test_the_package_runs_commands_by_name(words, code, shown, error):
    result = run("bash", "-c", f'exec "$0" -m opt_trt {words}', sys.executable)
    assert result.returncode == code
    assert (result.stdout[: len(shown) or None], result.stderr[: len(error) or None]) == (shown, error)


@pytest.mark.parametrize("argv", [["--compare", "a", "b"], ["a", "--compare", "b"], ["a", "b", "--compare"]])
def test_directories_stand_before_and_behind_flags(argv):
    assert parse(DescribeConfig, argv).directories == ("a", "b")


def test_what_a_terminal_cannot_show_is_escaped_and_nothing_is_lost():
    code = PRINTS.format(lines=1, then="print('caf\\u00e9 \\u2019 \\udce9 end')")
    result = run_python("-c", code, environment={"PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["0", r"caf\xe9 \u2019 \udce9 end"]


def test_names_from_files_are_escaped_wherever_an_error_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `OSError` and the stack of `--log_level verbose` name files, too."""

    def fail(config: BuildConfig) -> NoReturn:
        try:
            raise ValueError("a\n::error::b\x1b[2J")
        except ValueError as error:
            raise FileNotFoundError(2, "none", "c\n::error::d\x1b") from error

    with pytest.raises(SystemExit):
        run_main(fail, BuildConfig, ["--checkpoint_dir", "c", "--log_level", "verbose"])
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and r"::error::b\x1b[2J" in shown and shown.endswith("then run the command again\n")
    assert not any(line.startswith("::") for line in shown.splitlines())


LEFT = {"WORLD_SIZE": "2", "RANK": "1"}  # as PyTorch's operators set them in every pod


@pytest.mark.parametrize("script", [["convert_checkpoint.py"], ["run.py"], ["-m", "opt_trt"]])
def test_help_and_mistakes_are_printed_whatever_rank_is_in_the_environment(script):
    assert "usage: " in run_python(*script, "--help", environment=LEFT).stdout
    result = run_python(*script, "--nonsense", environment=LEFT)
    assert result.returncode == 2 and result.stderr.startswith("error: ")


def test_a_command_of_one_process_runs_whatever_rank_is_in_the_environment(tmp_path):
    out = tmp_path / "c"
    result = run_python("convert_checkpoint.py", "--model_dir", Model().write(tmp_path / "m"), "--output_dir", out,
                        environment=LEFT)  # fmt: skip
    assert result.returncode == 0 and (out / "rank0.safetensors").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_where_ranks_matter_the_variables_are_named(rank):
    result = run_python("run.py", "--max_output_len", "1", environment=LEFT | {"RANK": rank})
    assert result.returncode == 2
    assert f"error: WORLD_SIZE=2 and RANK={rank} are set, but MPI joined 1: unset WORLD_SIZE RANK" in result.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_a_command_works_without_standard_streams(closed, tmp_path):
    model = Model().write(tmp_path / "model")
    words = f"{sys.executable} convert_checkpoint.py --model_dir {model} --output_dir {tmp_path / 'c'} {closed}"
    assert run("sh", "-c", words).returncode == 0
    assert (tmp_path / "c" / "config.json").is_file()


def test_a_deleted_current_directory_is_named(tmp_path):
    words = f"cd {tmp_path} && rmdir {tmp_path} && {sys.executable} -P {ROOT / 'build.py'} --checkpoint_dir c"
    result = run("sh", "-c", words, environment={"PYTHONPATH": str(ROOT)})
    assert result.returncode == 2
    said = "error: the current directory has been deleted; change to another one, and run the command again\n"
    assert result.stderr == said


def test_a_command_that_ignores_a_closed_terminal_goes_on():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGHUP)"
    result = run("sh", "-c", 'trap \'\' HUP; exec "$0" -c "$1"', sys.executable, PRINTS.format(lines=1, then=code))
    assert (result.returncode, result.stdout) == (0, "0\n")
