"""Engines run over torch's memory: contexts, addresses, kernels that are kept, flags, and one line for each failure."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.backends.engine import EngineConfig
from opt_trt.backends.tensorrt import deserialize, library, open_session
from opt_trt.backends.tensorrt.bindings import GENERATION, PROMPT, WANTED
from opt_trt.backends.tensorrt.deserialize import PROBLEMS, LastError
from opt_trt.backends.tensorrt.engine_shape import engine_shape
from opt_trt.backends.tensorrt.open_session import Machine, open_slots
from opt_trt.config.runtime_flags import RuntimeOptions
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.model.mapping import Mapping
from opt_trt.plugins.cuda.gpu import Gpu
from opt_trt.runtime.follow import Opening
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.ranks import ALONE
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit._decoders import expected_output
from tests.unit.backends.tensorrt._stand_in import BITS, CONTENT, STREAM, VALIDITY, StandIn
from tests.unit.backends.tensorrt._sum_run import SumRun, poisoned, sum_config

GPU = Gpu("a stand-in", "8.9")
PROMPTS = [tuple((7 * i + n) % 16 for i in range(n)) for n in (1, 14, 5, 16, 2, 9)]


@contextmanager
def turn() -> Iterator[int]:
    yield STREAM


@dataclass(frozen=True)
class Made:
    """An engine of the stand-in."""

    directory: Path
    config: EngineConfig

    def library(self, **changes: Any) -> StandIn:
        model = self.config.pretrained_config
        return StandIn(SumRun(model), model, engine_shape(model, self.config.build_config), **changes)

    def session(self, library: StandIn, options: RuntimeOptions | None = None, gpu: Gpu = GPU) -> DecoderSession:
        machine = Machine(gpu, library, torch.device("cpu"), turn)
        decoder = open_slots(self.directory, self.config, options or RuntimeOptions(), machine)
        return poisoned(DecoderSession(decoder, KvCacheLimit()))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    config = sum_config()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "rank0.engine").write_bytes(CONTENT)
    return Made(tmp_path, config)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def requests(new_tokens: int = 8) -> list[Request]:
    return [Request(p, new_tokens, return_context_logits=True, return_generation_logits=True) for p in PROMPTS]


def kept(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.kernels"))


@pytest.mark.parametrize("compiles", [True, False])
def test_a_session_over_an_engine_computes_what_the_engine_computes(made, compiles) -> None:
    for result in generate(made.session(made.library(compiles=compiles)), requests()):
        assert result.output_ids == expected_output(result.prompt_ids, 8)
        ids = torch.tensor(result.prompt_ids + result.output_ids)
        found = torch.cat((result.context_logits, result.generation_logits[1:]))
        assert found.argmax(1).tolist() == (ids.cumsum(0) % 16).tolist()[:-1]


def test_prompts_and_generation_have_contexts_of_their_own(made) -> None:
    library = made.library()
    generate(made.session(library), requests())
    strategy = {p: c.config.dynamic_shapes_kernel_specialization_strategy.name for p, c in library.contexts.items()}
    assert strategy == {PROMPT: "NONE", GENERATION: "EAGER"}
    assert set(library.contexts[PROMPT].rows) == {1} and set(library.contexts[GENERATION].rows) <= {1, 2, 4, 5}


def test_addresses_are_told_once_while_nothing_moves(made) -> None:
    library = made.library()
    of = made.session(library)
    generate(of, [Request(PROMPTS[2], 4)])
    before = library.contexts[GENERATION].told.copy()
    generate(of, [Request(PROMPTS[2], 18)])
    assert library.contexts[GENERATION].told == before
    assert library.contexts[PROMPT].told["key_cache_0"] == 1


def test_caches_must_be_written_where_they_lie(made) -> None:
    """The stand-in notices a cache that is written elsewhere."""
    of = made.session(made.library())
    bindings = of.executor.decoder._run._contexts[GENERATION]
    tell = bindings.set_outputs
    other = torch.zeros(10)

    def elsewhere(tensors: dict[str, torch.Tensor]) -> None:
        tell({name: other if name == "value_cache_1_out" else tensor for name, tensor in tensors.items()})

    bindings.set_outputs = elsewhere
    with pytest.raises(RuntimeError, match=r"^the engine failed: not in place: \['value_cache_1'\], or"):
        generate(of, [Request(PROMPTS[0], 4)])


@pytest.mark.parametrize(
    ("feeds", "said"),
    [({"input_ids": (9, 1)}, "does not take input_ids"), ({WANTED: ()}, "does not take wanted")],
)
def test_shapes_that_the_engine_does_not_take_are_errors(made, feeds, said) -> None:
    run = made.session(made.library()).executor.decoder._run
    with pytest.raises(RuntimeError, match=said):
        run._contexts[GENERATION].set_inputs({name: torch.zeros(shape) for name, shape in feeds.items()})


def test_a_failed_run_says_what_the_library_said(made, monkeypatch) -> None:
    library = made.library()
    of = made.session(library)
    monkeypatch.setattr(of.executor.decoder._run, "_turn", lambda: Other())
    with pytest.raises(RuntimeError, match=r"^the engine failed: not in place: \[\], or stream 0 is not 7$"):
        generate(of, [Request(PROMPTS[1], 4)])


class Other:
    """A turn on another stream."""

    def __enter__(self) -> int:
        return 0

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("asked", [True, False])
def test_graphs_are_captured_for_generation_if_asked_for(made, asked) -> None:
    library = made.library()
    made.session(library, RuntimeOptions(cuda_graph_mode=asked))
    found = {profile: context.config.cuda_graph_strategy.name for profile, context in library.contexts.items()}
    assert found == {PROMPT: "DISABLED", GENERATION: "WHOLE_GRAPH_CAPTURE" if asked else "DISABLED"}


def test_a_library_without_graphs_refuses_them(made) -> None:
    with pytest.raises(UserError, match=r"^--cuda_graph_mode needs .* tensorrt 1\.7\.1\.116 captures none; leave it"):
        made.session(made.library(compiles=False), RuntimeOptions(cuda_graph_mode=True))


@pytest.mark.parametrize(("share", "streamable", "budget"), [(0.25, 1000, 250), (1.0, 1000, 1000), (1.0, 0, None)])
def test_the_share_of_weights_on_the_gpu_is_the_flag_s(made, share, streamable, budget) -> None:
    library = made.library(streamable=streamable)
    made.session(library, RuntimeOptions(gpu_weights_percent=share))
    assert library.engine.weight_streaming_budget_v2 == budget


def test_weights_can_only_be_streamed_if_the_engine_was_built_so(made) -> None:
    with pytest.raises(UserError, match=r"^--gpu_weights_percent needs an engine .* with --weight_streaming$"):
        made.session(made.library(), RuntimeOptions(gpu_weights_percent=0.5))


def test_kernels_are_kept_and_used_by_the_next_session(made, own_cache) -> None:
    first, second = made.library(), made.library()
    generate(made.session(first), requests())
    [file] = kept(own_cache)
    shapes, compiled = file.read_bytes(), {f"1:{rows}" for rows in first.contexts[GENERATION].rows}
    assert first.blob == b"" and len(compiled) > 1
    assert set(shapes.decode().split()) == {"kernels", "0:1"} | compiled
    generate(made.session(second), requests(new_tokens=2))
    assert second.blob == shapes == file.read_bytes()


def test_kernels_of_another_machine_are_replaced(made, own_cache) -> None:
    generate(made.session(made.library()), requests())
    [file] = kept(own_cache)
    file.write_bytes(b"of another driver")
    library = made.library()
    generate(made.session(library), requests())
    assert library.blob == b"" and file.read_bytes().startswith(b"kernels 0:1")


def test_a_gpu_has_a_file_of_its_own(made, own_cache) -> None:
    generate(made.session(made.library()), requests())
    generate(made.session(made.library(), gpu=replace(GPU, name="another")), requests())
    assert len(kept(own_cache)) == 2


def test_a_cache_that_cannot_be_written_is_named_and_no_error(made, own_cache, capsys) -> None:
    own_cache.write_text("a file, not a directory")
    assert len(generate(made.session(made.library()), requests())) == len(PROMPTS)
    assert "kernels are not kept for the next session" in capsys.readouterr().err


def test_a_library_that_compiles_nothing_keeps_nothing(made, own_cache) -> None:
    generate(made.session(made.library(compiles=False)), requests())
    assert kept(own_cache) == []


@pytest.mark.parametrize("bit", BITS)
def test_each_problem_of_an_engine_is_one_line(made, bit) -> None:
    with pytest.raises(UserError) as error:
        made.session(made.library(validity=VALIDITY.INVALID, bits=int(bit)))
    text = str(error.value)
    assert text.startswith(f"{made.directory / 'rank0.engine'} ") and text.endswith(f" ({bit.name})")
    assert "\n" not in text and "{" not in text and ";" in text


def test_an_engine_that_is_only_slower_here_is_opened(made, capsys) -> None:
    made.session(made.library(validity=VALIDITY.SUBOPTIMAL, bits=2))
    assert "it will run, but was built for another GPU: UNSUPPORTED_CC" in capsys.readouterr().err


def test_an_engine_that_does_not_open_says_why(made) -> None:
    with pytest.raises(
        UserError, match=r"could not be opened with tensorrt_rtx 1\.7\.1\.116: out of luck; build it again"
    ):
        made.session(made.library(fails="out of luck\nand more"))


@pytest.mark.parametrize("content", [None, b""])
def test_a_file_that_is_not_there_is_one_line(made, content) -> None:
    (made.directory / "rank0.engine").unlink()
    if content is not None:
        (made.directory / "rank0.engine").write_bytes(content)
    with pytest.raises(UserError, match=r"^expected an engine in .*rank0\.engine, found nothing there; build it again"):
        made.session(made.library())


def opening(made: Made, **changes: Any) -> Opening:
    return replace(Opening(made.directory, KvCacheLimit(), Scheduling(), RuntimeOptions(), ""), **changes)


@pytest.mark.parametrize(
    ("gpu", "found"),
    [(None, f"torch {torch.__version__} sees none here"), (Gpu("H", "9.0"), "this is an H (compute capability 9.0)")],
)
def test_without_a_gpu_of_its_kind_an_engine_names_both_and_what_to_do(made, monkeypatch, gpu, found) -> None:
    monkeypatch.setattr(open_session, "visible_gpu", lambda: gpu)
    with pytest.raises(UserError) as error:
        open_session.open_session(opening(made), ALONE)
    assert str(error.value) == (
        f"{made.directory} was built by tensorrt_rtx 1.7.1.116 for GPUs of compute capability 8.0, 8.9, {found}; run "
        "it on such a GPU, or build an engine for this machine with --backend inductor"
    )


@pytest.mark.parametrize("compiles", [True, False])
def test_an_engine_is_opened_by_the_library_that_built_it(made, installed, monkeypatch, compiles) -> None:
    monkeypatch.setattr(open_session, "visible_gpu", lambda: GPU)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    own, other = made.library(compiles=compiles), made.library(compiles=not compiles)
    config = replace(made.config, device=made.config.device | {"library": own.__name__})
    was = f"was built by {own.__name__} 1.7.1.116, found"
    installed(own, other)
    assert open_session.this_machine(made.directory, config).library is own
    installed(other)
    with pytest.raises(UserError, match=f"{was} {other.__name__} 1.7.1.116; install the former, or build it again"):
        open_session.this_machine(made.directory, config)
    installed()
    with pytest.raises(UserError, match=f"{was} no TensorRT library; install the former"):
        open_session.this_machine(made.directory, config)


@pytest.fixture
def installed(monkeypatch) -> Callable[..., None]:
    """Return a function that makes exactly these libraries importable."""
    monkeypatch.setattr(library, "lacking", lambda _: [])  # the stand-in has what runs, not what builds

    def install(*modules: StandIn) -> None:
        for name in library.MODULES:
            monkeypatch.setitem(sys.modules, name, next((m for m in modules if m.__name__ == name), None))

    return install


def test_what_no_engine_does_is_refused_by_name_before_a_gpu_is_looked_for(made, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"^--kv_cache_enable_block_reuse is not supported by this engine"):
        open_session.open_session(opening(made, scheduling=Scheduling(enable_block_reuse=True)), ALONE)
    with pytest.raises(UserError, match=r"^--multi_block_mode is not supported by this engine"):
        open_session.open_session(opening(made, options=RuntimeOptions(multi_block_mode=False)), ALONE)
    several = replace(made.config.pretrained_config, mapping=Mapping(world_size=2, tp_size=2, pp_size=1))
    config = replace(made.config, pretrained_config=several)
    with pytest.raises(
        UserError, match=r"has 2 ranks, this backend runs one; convert with --tp_size 1 and --pp_size 1"
    ):
        open_session.check_supported(opening(made), config)


def test_every_problem_that_the_library_knows_has_a_line() -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx (requirements-tensorrt.txt)")
    assert set(library.EngineInvalidityDiagnostics.__members__) == set(PROBLEMS)


def test_the_library_itself_calls_a_damaged_engine_damaged(tmp_path) -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx (requirements-tensorrt.txt)")
    (tmp_path / "rank0.engine").write_bytes(b"no engine" * 1000)
    said = LastError()
    with pytest.raises(UserError, match=r"rank0\.engine is damaged or no engine; .*\(MALFORMED_ENGINE\)$"):
        deserialize.deserialize(library, deserialize.create_runtime(library, said), said, tmp_path / "rank0.engine")
