"""The process that builds one rank: `python -m opt_trt.backends.tensorrt.compile_rank`, started by `compiler_process`.

TensorRT swallows Ctrl-C, prints on stdout, takes gigabytes and may crash, so it has a process of its own. That reads a
`Job` as JSON from its standard input and writes events, a line of JSON each, to what was its standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from opt_trt.backends.tensorrt.bindings import EngineShape
from opt_trt.backends.tensorrt.inputs import add_profiles
from opt_trt.backends.tensorrt.kernels import LAYERS_MESSAGE
from opt_trt.backends.tensorrt.library import Library, chooses_gpus, create_network, load_library, set_precision
from opt_trt.backends.tensorrt.network import add_decoder
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.errors import EXIT_USER_ERROR, UserError
from opt_trt.host.workers import one_thread
from opt_trt.quant import MODES

LIBC = ctypes.CDLL(None)
M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK = 1 << 17  # bytes
TRIM_SECONDS = 0.05
PR_SET_PDEATHSIG = 1  # linux/prctl.h
NO_DRIVER = "cudaError 35"  # follows every other error where there is no GPU
FAST = 1  # the optimization level of --fast_build
Send = Callable[..., None]


@dataclass(frozen=True)
class Job:
    """A request to build the plan of one rank; all values are JSON."""

    checkpoint_dir: str
    packed_sm: int | None  # the GPU in whose layout its weights are packed
    rank: int
    shape: dict[str, int]
    logits_dtype: str
    lm_head_precision: str | None
    target_sms: list[int]
    builder_flags: list[str]
    fast: bool
    plan: str  # the file to write
    input_timing_cache: str | None
    output_timing_cache: str | None  # with TensorRT proper alone
    lists_network: bool
    is_verbose: bool


def main() -> None:
    """Build what standard input asks for, and report each event to what was standard output."""
    _die_with(int(sys.argv[1]))
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # the library's own lines

    def send(**event: Any) -> None:
        channel.write(json.dumps(event) + "\n")

    try:
        compile_rank(Job(**json.load(sys.stdin)), send)
    except UserError as error:
        send(refused=error.text)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        send(failed=[error.errno, error.strerror, error.filename])
        sys.exit(EXIT_USER_ERROR)


def compile_rank(job: Job, send: Send) -> None:
    """Write the plan of a rank; `UserError` has the library's last error, `OSError` is of the file."""
    library = load_library()
    log = _logger(library, send, job.is_verbose)
    builder = library.Builder(log)
    network = create_network(library, builder)
    checkpoint = Checkpoint(job.checkpoint_dir, job.rank, job.packed_sm)
    shape = EngineShape(**job.shape)
    mode = MODES[job.lm_head_precision] if job.lm_head_precision else None
    directory = Path(job.plan).parent
    with one_thread():
        constants = add_decoder(library, network, checkpoint, shape, job.logits_dtype, mode, directory)
    if job.lists_network:
        send(network=[_describe(network.get_layer(number)) for number in range(network.num_layers)])
    config = builder.create_builder_config()
    configure(library, config, job)
    add_profiles(builder, config, checkpoint.config, shape)
    with open(job.plan, "wb", buffering=0) as file, _memory_returned():
        writer = _writer(library, file)
        send(stage="compile")
        built = builder.build_serialized_network_to_stream(network, config, writer)
    del constants  # the builder has read their memory until now
    if writer.error is not None:
        raise writer.error
    if not built:
        raise UserError(f"TensorRT could not build rank {job.rank}: {log.last_error or 'it gave no reason'}")
    if job.output_timing_cache:
        Path(job.output_timing_cache).write_bytes(bytes(config.get_timing_cache().serialize()))
    send(done={"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


@contextmanager
def _memory_returned() -> Iterator[None]:
    """Give what is free back to the system all the time; else a third of the peak is memory of the past.

    The library frees much between the parts of its work, and malloc keeps it for more of the same size.
    """
    LIBC.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)  # not sooner: unpacking weights reuses such blocks
    ended = threading.Event()

    def trim() -> None:
        while not ended.wait(TRIM_SECONDS):
            LIBC.malloc_trim(0)

    thread = threading.Thread(target=trim, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def later_error(known: str, message: str) -> str:
    """Return the one of two errors that says why a build failed, as one line; `message` came later."""
    return known if known and NO_DRIVER in message else " ".join(message.split())


def configure(library: Library, config: Any, job: Job) -> None:
    """Set everything that the flags of a build decide."""
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # the log then lists every kernel
    set_precision(library, config)
    for name in job.builder_flags:
        config.set_flag(getattr(library.BuilderFlag, name))
    if job.fast:
        config.builder_optimization_level = FAST
    if chooses_gpus(library):
        config.num_compute_capabilities = len(job.target_sms)
        for place, sm in enumerate(job.target_sms):
            config.set_compute_capability(_capability(library, sm), place)
    if job.output_timing_cache:
        earlier = Path(job.input_timing_cache or job.output_timing_cache)
        cache = config.create_timing_cache(earlier.read_bytes() if earlier.is_file() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)


def _capability(library: Library, sm: int) -> Any:
    if not hasattr(library.ComputeCapability, f"SM{sm}"):
        raise UserError(f"{library.__name__} {library.__version__} has no engines for SM {sm}; install a newer one")
    return getattr(library.ComputeCapability, f"SM{sm}")


def _logger(library: Library, send: Send, is_verbose: bool) -> Any:
    """Return a logger that reports what a build is judged by, and keeps the last error. It must not raise."""

    class Log(library.ILogger):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.last_error = later_error(self.last_error, message)
            if is_verbose or severity != library.ILogger.VERBOSE or message.startswith(LAYERS_MESSAGE):
                send(log=[severity.name, message])

    return Log()


def _writer(library: Library, file: BinaryIO) -> Any:
    """Return a stream for the plan. The library loses exceptions, so the first one is kept."""

    class Writer(library.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            written, view = 0, memoryview(data)
            LIBC.malloc_trim(0)  # the pieces are large
            try:
                while self.error is None and written < len(view):
                    written += file.write(view[written:])
            except OSError as error:
                error.filename = file.name
                self.error = error
            return written

    return Writer()


def _describe(layer: Any) -> str:
    """Return one line about a layer of the network."""
    inputs = [layer.get_input(place) for place in range(layer.num_inputs)]
    outputs = [layer.get_output(place) for place in range(layer.num_outputs)]
    read, written = (", ".join(f"{t.name} {t.dtype.name}{list(t.shape)}" for t in ts if t) for ts in (inputs, outputs))
    return f"{layer.name}\t{layer.type.name}\t{read} -> {written}"


def _die_with(parent: int) -> None:
    """Let the kernel kill this process as soon as its parent has ended, whatever ended that."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
