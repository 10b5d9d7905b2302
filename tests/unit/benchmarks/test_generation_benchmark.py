"""The benchmark's arithmetic and options: ratios, validity, participants. Nothing is measured here."""

import json
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import generation
import pytest
from ceilings import MachineCeilings
from costs import Computes, context_flops, step_bytes, step_flops, weight_bytes
from engine import precision_of
from models import SHAPES
from peers import PEERS, PeerVariant, parse_variants
from peers.environment import PeerUnavailable, last_line, peer_python
from report import Measurement, ceilings_line, measurement_table, runner_rows
from roofline import Axis, Point, draw_roofline
from turns import Load, Spread, Turn, ratio, read_shares, step_seconds, take_turns

from opt_trt.cli import parse
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.errors import UserError
from opt_trt.quant import MODES
from tests._processes import run_python

ROOT = Path(__file__).parents[3]
INT8 = Computes("int8", "float16", "float16", "float32")
CALM = MachineCeilings(40.0, 200.0, 900.0)
LOAD = Load(batch_size=1, input_len=200, output_len=5)


def test_a_run_counts_if_no_ceiling_moved_by_more_than_eight_percent():
    assert CALM.agrees(MachineCeilings(43.0, 210.0, 900.0))
    assert not CALM.agrees(MachineCeilings(36.0, 200.0, 900.0))
    assert not CALM.agrees(MachineCeilings(40.0, 200.0, 800.0))
    assert CALM.drift(MachineCeilings(50.0, 200.0, 900.0)) == pytest.approx(0.2)
    assert CALM.best(MachineCeilings(36.0, 210.0, 900.0)) == MachineCeilings(40.0, 210.0, 900.0)


def test_ratios_are_those_of_the_rounds_not_of_the_medians():
    assert ratio([2.0, 6.0, 8.0], [1.0, 2.0, 4.0]) == Spread(2.0, 2.0, 3.0)


TURNS = [Turn(1.0, 5.0, 40.0), Turn(3.0, 7.0, 30.0), Turn(2.0, 10.0, 10.0)]  # median context 2.0


def test_a_step_is_what_the_generation_took_beyond_the_context_phase_by_the_step():
    assert step_seconds(TURNS, output_len=5) == [0.75, 1.25, 2.0]


def test_what_a_step_reads_is_held_against_reading_beside_the_same_turn():
    assert read_shares(TURNS, 15e9, output_len=5) == [0.5, 0.4, 0.75]


def test_runners_alternate_and_the_first_round_is_not_recorded(monkeypatch):
    calls = []

    class Clockwork:
        def __init__(self, name):
            self.name = name

        def seconds(self, prompts, output_len):
            calls.append((self.name, output_len, prompts[0][0]))
            return float(len(calls))

    rates = iter(range(100))
    monkeypatch.setattr("turns.steady_read_rate", lambda: next(rates))
    monkeypatch.setattr("turns.REST_SECONDS", 0)
    turns = take_turns({"a": Clockwork("a"), "b": Clockwork("b")}, LOAD, rounds=2)
    assert [(name, length) for name, length, _ in calls] == [(n, length) for n in "abababa"[:6] for length in (2, 1, 5)]
    assert {name: len(taken) for name, taken in turns.items()} == {"a": 2, "b": 2}
    assert turns["a"][0] == Turn(8.0, 9.0, 4.5)  # of rates 4 and 5
    assert [ids for name, _, ids in calls if name == "a"] == [ids for name, _, ids in calls if name == "b"]
    assert LOAD.prompts(1) != LOAD.prompts(2)


def test_bytes_and_operations_of_a_step_are_those_counted_by_hand():
    shape = SHAPES["opt-125m"]
    layers, head = 12 * 12 * 768**2, 50272 * 768
    assert (shape.layer_weights, shape.head_weights) == (layers, head)
    assert weight_bytes(shape, INT8) == layers + 2 * head
    kv = 2 * 12 * 768 * 2 * 202.5
    assert step_bytes(shape, INT8, LOAD) == layers + 2 * head + kv
    assert step_flops(shape, LOAD) == 2 * (layers + head + 2 * 12 * 768 * 202.5)
    assert context_flops(shape, LOAD) == 2 * (200 * (layers + 12 * 768 * 200) + head)
    assert SHAPES["opt-350m"].head_weights == 50272 * 512 + 1024 * 512


def measurement(after=CALM):
    turns = {"engine": [Turn(0.1, 0.5, 8.0)] * 2, "other:int8": [Turn(0.2, 1.0, 8.0), Turn(0.2, 1.2, 8.0)]}
    shape = SHAPES["opt-125m"]
    rows = runner_rows(shape, LOAD, dict.fromkeys(turns, INT8), {"engine": 0.02064}, turns)
    return Measurement(shape, LOAD, CALM, after, rows, {"gone": "it cannot be installed: no such version"})


def test_the_table_names_ratios_errors_computation_and_those_who_are_absent():
    text = measurement_table(measurement())
    assert "2.25 (2.00-2.50)" in text and "2.00 (2.00-2.00)" in text
    ours, other = text.splitlines()[2:4]
    assert ours.endswith(" 2.064 %") and other.endswith("  -")
    assert "  other:int8: weights int8, head float16, KV cache float16, activations float32" in text
    assert "  gone: NOT MEASURED, it cannot be installed: no such version" in text


def test_the_saved_numbers_are_plain_json_and_say_whether_they_count():
    saved = json.loads(json.dumps(measurement().to_dict()))
    assert saved["counts"] is True and [row["error"] for row in saved["rows"]] == [0.02064, None]
    noisy = measurement(MachineCeilings(30.0, 200.0, 900.0))
    assert noisy.to_dict()["counts"] is False
    assert "moved by 25.0%, more than 8%: the run is NOT valid" in ceilings_line(noisy.before, noisy.after)


def test_the_picture_is_well_formed_and_puts_more_operations_higher():
    points = [Point("a & b", "generation", 1.0, 20.0, "9.7 ms a step"), Point("a & b", "context", 400.0, 600.0, "7 ms")]
    root = ElementTree.fromstring(draw_roofline("<title>", "sub", CALM, points))
    discs = [node for node in root.iter("{http://www.w3.org/2000/svg}circle") if len(node)]
    (low, high) = [(float(disc.get("cx")), float(disc.get("cy"))) for disc in discs]
    assert low[0] < high[0] and low[1] > high[1]
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "generation 9.7 ms a step, 20 GFLOP/s, 50% of the roof" in texts
    assert "context 7 ms, 600 GFLOP/s, 67% of the roof" in texts


def test_points_stand_off_the_axes():
    axis = Axis.over([1.0, 400.0], 0, 600)
    assert axis.place(1.0) > 20 and axis.place(400.0) < 580
    assert axis.ticks == [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]


def test_a_peer_is_taken_in_the_variant_nearest_to_the_precision_unless_one_is_named():
    assert parse_variants("openvino,ctranslate2:float32,openvino", "int8") == [
        PeerVariant("openvino", "int8"),
        PeerVariant("ctranslate2", "float32"),
    ]
    assert parse_variants("", "int8") == []
    with pytest.raises(UserError, match="--peers must be of transformers, "):
        parse_variants("onnx", "int8")
    with pytest.raises(UserError, match=r"--peers openvino has the variants .*int8-bf16.*, found 'int3'"):
        parse_variants("openvino:int3", "int8")


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_has_a_script_a_variant_for_every_precision_and_exact_pins(name):
    peer = PEERS[name]
    here = ROOT / "benchmarks" / "peers"
    assert (here / peer.script).is_file()
    assert set(peer.variants) == set(generation.PRECISIONS)
    if peer.requirements:
        lines = (here / peer.requirements).read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))


def test_a_peer_that_cannot_be_installed_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("venv.create", lambda home, **options: Path(home).mkdir(parents=True))
    failed = subprocess.CompletedProcess([], 1, "", "looking\nERROR: no such version\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(PeerUnavailable, match=r"requirements-openvino.txt cannot be installed: ERROR: no such version"):
        peer_python(PEERS["openvino"], tmp_path)
    assert not list(tmp_path.rglob("ready"))
    assert last_line("") == "it printed no error"


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--output_len", "1"], "--output_len must be at least 2"),
        (["--batch_size", "0"], "at least 1"),
        (["--engine_dir", "nowhere"], "expected an engine directory at nowhere"),
    ],
)
def test_options_that_cannot_be_measured_are_refused(options, problem):
    with pytest.raises(UserError, match=problem):
        generation.subject_of(generation.parser().parse_args(options))


def test_options_say_what_is_measured_and_what_the_build_is_given():
    asked = ["--model_shape", "opt-1.3b", "--precision", "int4", "--lm_head_precision", "int8"]
    subject = generation.subject_of(generation.parser().parse_args(asked))
    assert (subject.shape, subject.precision) == ("opt-1.3b", "int4")
    assert subject.build_flags == ("--lm_head_precision", "int8")


def engine_of(dtype, algorithm):
    """Return the part of an engine's configuration that determines its precision."""
    return SimpleNamespace(pretrained_config=SimpleNamespace(dtype=dtype, quantization={"quant_algo": algorithm}))


@pytest.mark.parametrize("precision, flags", generation.PRECISIONS.items())
def test_an_engine_is_of_the_precision_it_was_converted_with(precision, flags):
    given = parse(ConvertConfig, ["--model_dir", "m", *flags])
    algorithm = MODES[given.weight_only_precision or "int8"].quant_algo if given.use_weight_only else None
    assert precision_of(engine_of(given.dtype, algorithm)) == precision


def test_an_engine_of_another_precision_is_refused():
    with pytest.raises(UserError, match=r"--engine_dir must be of a precision known here .*, found int8-float32"):
        precision_of(engine_of("float32", "W8A16"))


ECHO = """
from worker import LoadedModel, run

def open_model(model, variant):
    print("noise of a library")
    return LoadedModel({"weights": variant, "head": "int8", "kv_cache": "int8", "activations": model},
                  lambda prompts: prompts, lambda prompts, n: [row[:n] for row in prompts], None)

run(open_model)
"""


def asked_of_echo(tmp_path, output_len):
    """Ask a worker that returns its prompts once for some new tokens."""
    (tmp_path / "run_echo.py").write_text(ECHO)
    asked = json.dumps({"seconds": {"prompts": [[1, 2, 3]], "output_len": output_len}}) + "\n"
    paths = {"PYTHONPATH": str(ROOT / "benchmarks" / "peers")}
    return run_python(tmp_path / "run_echo.py", "serve", "m", "int4", environment=paths, input=asked)


def test_a_worker_says_what_it_computes_with_and_answers_until_its_input_ends(tmp_path):
    done = asked_of_echo(tmp_path, 2)
    computes, answer = map(json.loads, done.stdout.splitlines())
    assert Computes(**computes) == Computes("int4", "int8", "int8", "m")
    assert 0 <= answer["seconds"] < 60
    assert "noise of a library" in done.stderr


def test_a_worker_that_stops_early_fails(tmp_path):
    done = asked_of_echo(tmp_path, 4)
    assert done.returncode != 0 and "expected 1 rows of 4 new ids, found 1 of [3]" in done.stderr
