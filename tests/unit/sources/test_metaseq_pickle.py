"""Unpickling a metaseq file imports and runs nothing: foreign objects become stubs, dangerous names are refused."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opt_trt.errors import UserError
from opt_trt.sources import open_source
from opt_trt.sources.stand_ins import Stub
from opt_trt.sources.unpickle import unpickle
from tests.unit._metaseq import Metaseq
from tests.unit._models import Model


class Payload:
    """An object whose pickle is the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def archive(path: Path, pickled: bytes) -> Path:
    """Write a torch archive with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
    return path


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch ran",), "posix.system"),
        (os.mkdir, ("ran",), "posix.mkdir"),
        (eval, ("open('ran', 'w')",), "eval"),
        (exec, ("open('ran', 'w')",), "exec"),
        (getattr, (os, "mkdir"), "getattr"),
        (open, ("ran", "w"), "io.open"),
        (__import__, ("os",), "__import__"),
        (subprocess.Popen, (["touch", "ran"],), ".Popen"),
        (importlib.import_module, ("this",), "importlib.import_module"),
        (pickle.loads, (b"N.",), "pickle.loads"),
        (torch.load, ("ran",), "torch.serialization.load"),
        (torch.hub.load, ("ran", "ran"), "torch.hub.load"),
        (torch.storage._load_from_bytes, (b"",), "torch.storage._load_from_bytes"),
    ],
)
@pytest.mark.parametrize("place", ["top", "cfg", "model"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_that_would_run_something_is_refused_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    name: str,
    place: str,
    protocol: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = () if function is getattr else arguments  # a module cannot be pickled
    payload = Payload(function, *arguments)
    values = {"top": payload, "cfg": {"model": {}, "cfg": payload}, "model": {"model": {"decoder.version": payload}}}
    archive(tmp_path / "reshard.pt", pickle.dumps(values[place], protocol))
    with pytest.raises(UserError) as caught:
        open_source(tmp_path)
    text = str(caught.value)
    assert f"{name} beside tensors and settings; it was not unpickled, because that can run code" in text
    assert str(tmp_path / "reshard.pt") in text and "\n" not in text
    assert os.listdir(tmp_path) == ["reshard.pt"]


def test_a_name_with_line_breaks_is_shown_in_one_line(tmp_path: Path) -> None:
    archive(tmp_path / "reshard.pt", b"\x80\x04\x8c\x04o\ns\n\x8c\x06system\x93.")
    with pytest.raises(UserError, match=r"holds o\\ns\\n\.system beside tensors"):
        open_source(tmp_path)


def test_foreign_classes_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("omegaconf", "metaseq"):
        (tmp_path / f"{package}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    directory = Metaseq(Model()).write(tmp_path / "m")
    open_source(directory)
    assert not (tmp_path / "ran").exists()
    assert not {"omegaconf", "metaseq"} & sys.modules.keys()


def test_a_foreign_object_keeps_its_state_and_nothing_else(tmp_path: Path) -> None:
    pickled = b"\x80\x02cmetaseq.tasks\nTask\n)\x81}(X\x01\x00\x00\x00aK\x07ub."
    value = unpickle(archive(tmp_path / "x.pt", pickled))
    assert isinstance(value, Stub) and value.state == {"a": 7}
    assert (type(value).__module__, type(value).__name__) == ("metaseq.tasks", "Task")


def test_a_pickle_cannot_ask_for_memory_it_has_no_data_for(tmp_path: Path) -> None:
    """LONG_BINPUT has an index up to which an array of memo entries would have to grow."""
    assert unpickle(archive(tmp_path / "x.pt", b"\x80\x02K\x07r\xff\xff\xff\xff.")) == 7


@pytest.mark.parametrize("pickled", [b"cfairseq.x\nY\n(K\x01lK\x02a.", b"cenum\nEnum\n(K\x01tR(K\x01K\x02u."])
def test_foreign_containers_swallow_their_items(tmp_path: Path, pickled: bytes) -> None:
    assert unpickle(archive(tmp_path / "x.pt", pickled)) is not None


def test_parameters_and_tensors_with_attributes_are_tensors(tmp_path: Path) -> None:
    """Model-parallel training marks its tensors: `tensor.model_parallel = True`."""
    marked, parameter = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    marked.model_parallel = parameter.model_parallel = True  # type: ignore[attr-defined]
    torch.save({"a": marked, "b": parameter, "c": torch.nn.Parameter(torch.ones(4))}, tmp_path / "x.pt")
    assert {name: tensor.shape for name, tensor in unpickle(tmp_path / "x.pt").items()} == {
        "a": (3,),
        "b": (2,),
        "c": (4,),
    }


def test_a_tensor_made_by_a_foreign_object_is_refused(tmp_path: Path) -> None:
    from tests.unit._metaseq import foreign_classes, made

    class Fake(Metaseq):
        def contents(self, part: int, shard: int, classes: dict[str, type]) -> dict[str, Any]:
            top = super().contents(part, shard, classes)
            top["model"]["decoder.layers.0.fc1.bias"] = made(classes["AnyNode"], _val=3)
            return top

    Fake(Model()).write(tmp_path)
    with pytest.raises(
        UserError, match=r"decoder\.layers\.0\.fc1\.bias is a omegaconf\.nodes\.AnyNode, expected a ten"
    ):
        open_source(tmp_path)
    with foreign_classes() as classes:
        assert "AnyNode" in classes


def tensor_pickle(*arguments: Any) -> bytes:
    """Write a pickle of one tensor: storage key, elements, then offset, shape and stride."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.pid if isinstance(value, Storage) else None

    class Storage:
        pid = ("storage", torch.FloatStorage, *arguments[:1], "cpu", arguments[1])

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), *arguments[2:], False, None)

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"decoder.x": Tensor()})
    return buffer.getvalue()


def test_a_tensor_cannot_be_moved_after_it_was_made(tmp_path: Path) -> None:
    """BUILD puts a state into an object: here into a tensor, and into the dictionary of the tensor."""
    good = tensor_pickle("0", 4, 0, (4,), (1,))
    for state in (b"}X\x06\x00\x00\x00offsetK\x07s", b"N}X\x06\x00\x00\x00offsetK\x07s\x86"):
        path = archive(tmp_path / "x.pt", good[: good.rindex(b"s.")] + state + b"bs.")
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("archive/data/0", bytes(16))
        with pytest.raises(UserError, match=r"x\.pt is damaged .*sets the state of a Tensor"):
            unpickle(path)
    hidden = b"ccollections\nOrderedDict\n)R}(X\x05\x00\x00\x00itemsK\x07X\x03\x00\x00\x00getK\x07ub."
    values = unpickle(archive(tmp_path / "x.pt", hidden))
    assert list(values.items()) == [] and values.get("a") is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("0", 5, 0, (5,), (1,)), ("0", 4, 0, (5,), (1,)), ("0", 4, 2, (3,), (1,)), ("0", 4, 0, (2, 2), (9, 1)),
        ("1", 4, 0, (4,), (1,)), ("0", -4, 0, (4,), (1,)), ("0", 4, -1, (4,), (1,)), ("0", 4, 0, (4,), (1, 1)),
        ("0", 4, 0, (-4,), (1,)), ("0", 4, 0, (4,), (-1,)), ("0", "4", 0, (4,), (1,)), ("0", 4, 0, "4", (1,)),
    ],
)  # fmt: skip
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, arguments: tuple[Any, ...]) -> None:
    """The storage has four elements."""
    for pickled, good in ((tensor_pickle("0", 4, 0, (4,), (1,)), True), (tensor_pickle(*arguments), False)):
        path = archive(tmp_path / "x.pt", pickled)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("archive/data/0", bytes(16))
        if good:
            assert unpickle(path)["decoder.x"].shape == (4,)
        else:
            with pytest.raises(UserError, match=r"x\.pt is damaged or was not written by torch\.save"):
                unpickle(path)


def test_a_damaged_file_is_named_or_read_never_a_crash(tmp_path: Path) -> None:
    """Damage bytes of the pickle, and of the archive's directory at its end."""
    path = Metaseq(Model(layers=1), layout="layers", metadata=True).write(tmp_path) / "reshard.pt"
    whole, rng = path.read_bytes(), random.Random(0)
    with zipfile.ZipFile(path) as file:
        pickled = file.read("reshard/data.pkl")
    start, refused = whole.index(pickled), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            where = rng.choice((start + rng.randrange(len(pickled)), rng.randrange(len(whole) - 1500, len(whole))))
            damaged[where] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            open_source(tmp_path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 150
