"""Milliseconds per token and errors of engines, beside other systems and the machine's ceilings, in one run.

    python benchmarks/generation.py --model_shape opt-125m --precision int8 --batch_size 1 8
    python benchmarks/generation.py --engine_dir ENGINE --peers openvino:int8,openvino:int8-bf16,ctranslate2
    python benchmarks/generation.py --beside_deterministic --peers "" --batch_size 1 8 16

Weights are random at published shapes, the same for all systems, which take turns. Errors compare logits with those of
transformers in float32. At first use, other systems ("peers") are installed and the model is converted for them;
`--prepare` does only that. The machine's ceilings are measured before and after each load. Numbers are printed and
saved only if the two measurements agree within 8 %; otherwise the exit code is 1. `benchmarks/README.md` explains the
numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # the commands set it, too

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout without an installation

from ceilings import measure_ceilings
from costs import context_flops, step_bytes, step_flops, weight_bytes
from engine import PRECISIONS, precision_of, shape_of
from errors import compute_reference, errors_of, is_of_other_weights
from models import SHAPES
from participants import Participant, Subject, engines, ready_peers, shared_model, started_peers
from peers import parse_variants
from report import Measurement, ceilings_line, measurement_table, runner_rows
from roofline import Point, draw_roofline
from turns import Load, take_turns

from opt_trt.backends.engine import read_engine_config
from opt_trt.errors import UserError
from opt_trt.host.cache import cache_dir


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model_shape", choices=SHAPES, help="default: opt-125m, or the engine's")
    made.add_argument("--precision", choices=PRECISIONS, help="default: float16, or the engine's")
    made.add_argument("--lm_head_precision", help="the flag of build.py")
    made.add_argument("--context_int8", action="store_true", help="the flag of build.py: int8 activations")
    made.add_argument(
        "--beside_deterministic", action="store_true", help="also measure an engine built with --deterministic"
    )
    made.add_argument("--engine_dir", type=Path, help="measure this engine instead of building one")
    made.add_argument(
        "--peers", default="transformers,ctranslate2,openvino", help="peers, or peer:variant, separated by commas"
    )
    made.add_argument("--batch_size", type=int, nargs="+", default=[1])
    made.add_argument("--input_len", type=int, default=200)
    made.add_argument("--output_len", type=int, default=64)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--allow_noise", action="store_true", help="print and save invalid measurements, too")
    made.add_argument("--prepare", action="store_true", help="install peers and convert models, measure nothing")
    made.add_argument("--cache_dir", type=Path, default=cache_dir() / "benchmarks")
    made.add_argument("--output_dir", type=Path, default=Path("work/benchmarks"), help="for the JSON and the picture")
    return made


def subject_of(a: argparse.Namespace) -> Subject:
    """Return the subject of the run; `UserError` for options that contradict an existing engine or each other."""
    if a.output_len < 2 or a.rounds < 1 or a.input_len < 1 or min(a.batch_size) < 1:
        raise UserError("--output_len must be at least 2; --rounds, --input_len and --batch_size at least 1")
    flags = (
        *(("--lm_head_precision", a.lm_head_precision) if a.lm_head_precision else ()),
        *(("--context_int8",) if a.context_int8 else ()),
    )
    if a.engine_dir is None:
        return Subject(a.model_shape or "opt-125m", a.precision or "float16", None, flags)
    config = read_engine_config(a.engine_dir)
    subject = Subject(shape_of(config), precision_of(config), a.engine_dir, ())
    if (
        flags
        or a.beside_deterministic
        or a.model_shape not in (None, subject.shape)
        or a.precision not in (None, subject.precision)
    ):
        raise UserError(
            f"--engine_dir {a.engine_dir} is {subject.shape} in {subject.precision} already; drop --model_shape, "
            "--precision, --lm_head_precision, --context_int8 and --beside_deterministic"
        )
    return subject


def measured(
    subject: Subject,
    load: Load,
    rounds: int,
    runners: dict[str, Participant],
    errors: dict[str, float],
    absent: dict[str, str],
) -> Measurement:
    """Take all turns of one load; measure the machine's ceilings before and after them."""
    shape = SHAPES[subject.shape]
    before = measure_ceilings()
    turns = take_turns(runners, load, rounds)
    after = measure_ceilings()
    rows = runner_rows(shape, load, {name: runner.computes for name, runner in runners.items()}, errors, turns)
    return Measurement(shape, load, before, after, rows, absent)


def publish(subject: Subject, measurement: Measurement, out: Path) -> None:
    """Print the table; write the JSON file and the picture."""
    load, shape = measurement.load, measurement.shape
    print(measurement_table(measurement), flush=True)
    name = f"generation-{subject.shape}-{subject.precision}-b{load.batch_size}-{load.input_len}+{load.output_len}"
    out.mkdir(parents=True, exist_ok=True)
    named = {"model_shape": subject.shape, "precision": subject.precision}
    (out / f"{name}.json").write_text(json.dumps(named | measurement.to_dict(), indent=1) + "\n")
    points = []
    for row in measurement.rows:
        step = step_flops(shape, load) / step_bytes(shape, row.computes, load)
        context = context_flops(shape, load) / weight_bytes(shape, row.computes)
        points += [
            Point(row.name, "generation", step, row.step_gflops, f"{row.step.median * 1e3:.2f} ms a step"),
            Point(row.name, "context", context, row.context_gflops, f"{row.context.median * 1e3:.1f} ms"),
        ]
    title = f"{subject.shape}, {subject.precision}, batch {load.batch_size}"
    subtitle = ceilings_line(measurement.before, measurement.after)
    (out / f"{name}.svg").write_text(draw_roofline(title, subtitle, measurement.ceilings, points))
    print(f"saved {out / name}.json and .svg", flush=True)


def run(a: argparse.Namespace) -> bool:
    """Run all loads; return whether all measurements were valid."""
    subject = subject_of(a)
    choices = parse_variants(a.peers, subject.precision)
    hf = shared_model(subject.shape, a.cache_dir)
    models, absent = ready_peers(choices, hf, a.cache_dir)
    if a.prepare:
        print(
            "\n".join(
                [*(f"{c.label}: {path}" for c, path in models.items()), *(f"{n}: {w}" for n, w in absent.items())]
            )
        )
        return not absent
    all_count = True
    with ExitStack() as stack:
        foreign = is_of_other_weights(subject.engine_dir, hf, absent)
        # The reference's process ends before the other runners allocate their memory.
        reference = None if foreign else compute_reference(hf, a.input_len, a.cache_dir, absent)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=a.cache_dir)))
        runners = engines(subject, a.beside_deterministic, hf, work)
        runners |= started_peers(models, a.cache_dir, absent, stack)
        errors = errors_of(runners, reference, absent)
        runners = {name: runner for name, runner in runners.items() if name not in absent}
        print(f"{subject.shape} {subject.precision}, {a.rounds} rounds")
        for batch_size in a.batch_size:
            load = Load(batch_size, a.input_len, a.output_len)
            measurement = measured(subject, load, a.rounds, runners, errors, absent)
            print(ceilings_line(measurement.before, measurement.after), flush=True)
            all_count = all_count and measurement.counts
            if measurement.counts or a.allow_noise:
                publish(subject, measurement, a.output_dir)
    return all_count


def main() -> None:
    try:
        sys.exit(0 if run(parser().parse_args()) else 1)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
