"""A published list of md5 sums shows whether the files of a model are the published ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.errors import UserError
from opt_trt.sources.manifest import check_md5, read_manifest
from tests.unit._models import Model

ONE, TWO = "0" * 31 + "1", "0" * 31 + "2"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("part-0.pt", "part-1.pt", "part-2.pt"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        f"shard,md5sum\na.pt,{ONE}\nb.pt,{TWO}",
        f"shard,md5sum\r\nfolder/a.pt,{ONE}\r\n\r\nb.pt,{TWO}\r\n",
        f"{ONE}  a.pt\n{TWO} *b.pt\n",
        f"{ONE}  folder/a.pt\n{TWO}  ./b.pt",
    ],
)
def test_a_list_is_csv_or_what_md5sum_prints(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    assert read_manifest(tmp_path / "list") == {"a.pt": ONE, "b.pt": TWO}


@pytest.mark.parametrize(
    "text",
    ["", "shard,md5sum\n", "shard,md5sum\na.pt\n", f"shard,md5sum\na.pt,{ONE[1:]}", "a.pt b.pt", f"{ONE}  a.pt\nb.pt"],
)
def test_what_is_no_list_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=r"list must hold lines of md5sum or csv with the header shard,md5sum, but"):
        read_manifest(tmp_path / "list")


def test_two_sums_for_one_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{ONE}  a/part.pt\n{TWO}  b/part.pt\n")
    with pytest.raises(UserError, match=rf"list gives part\.pt two sums, {ONE} and {TWO}"):
        read_manifest(tmp_path / "list")


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--md5_manifest .*nowhere cannot be read"):
        read_manifest(tmp_path / "nowhere")


def test_files_that_are_as_listed_pass_and_others_are_of_no_interest(directory: Path) -> None:
    names = ("part-0.pt", "part-2.pt")
    (directory / "sums.md5").write_text("".join(f"{md5(directory / name)}  {name}\n" for name in names))
    assert check_md5(directory, directory / "sums.md5", quiet=True) == (
        f"md5 sums of 2 files match {directory / 'sums.md5'}"
    )


def test_another_sum_names_the_file_and_both_sums(directory: Path) -> None:
    (directory / "sums.csv").write_text(
        f"shard,md5sum\npart-0.pt,{md5(directory / 'part-0.pt')}\npart-1.pt,{ONE}\npart-2.pt,{TWO}"
    )
    with pytest.raises(UserError) as caught:
        check_md5(directory, directory / "sums.csv", quiet=True)
    found = md5(directory / "part-1.pt")
    assert f"{directory}/part-1.pt has md5 {found}, {directory}/sums.csv says {ONE} (and 1 more" in str(caught.value)
    assert str(caught.value).endswith("fetch it again")


def test_a_listed_file_that_is_not_there_is_named(directory: Path) -> None:
    (directory / "sums.md5").write_text(f"{ONE}  part-7.pt\n")
    with pytest.raises(UserError, match=r"sums\.md5 lists part-7\.pt, which is not in"):
        check_md5(directory, directory / "sums.md5", quiet=True)


def test_a_list_that_gives_two_files_one_sum_warns_only(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published list of the 66B model does so for its parts 5 and 6."""
    sums = {"part-0.pt": md5(directory / "part-0.pt"), "part-1.pt": md5(directory / "part-1.pt")}
    sums["part-2.pt"] = sums["part-1.pt"]
    (directory / "sums.csv").write_text("shard,md5sum\n" + "\n".join(f"{n},{s}" for n, s in sums.items()))
    assert check_md5(directory, directory / "sums.csv", quiet=True).startswith("md5 sums of 2 files")
    assert f"WARNING: {directory}/part-2.pt has md5 {md5(directory / 'part-2.pt')}" in capsys.readouterr().err


def test_a_conversion_hashes_first_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, sums = Model().write(tmp_path / "model"), tmp_path / "sums.md5"
    config = ConvertConfig(model_dir=str(model), output_dir=str(tmp_path / "out"), md5_manifest=str(sums))
    sums.write_text(f"{ONE}  model.safetensors\n")
    with pytest.raises(UserError, match=r"model\.safetensors has md5"):
        convert(config)
    assert not (tmp_path / "out").exists()
    sums.write_text(f"{md5(model / 'model.safetensors')}  model.safetensors\n")
    convert(config)
    assert capsys.readouterr().out.startswith(f"md5 sums of 1 files match {sums}\n")


def test_a_list_with_a_cell_of_any_length_is_named(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("shard,md5sum\n" + "a" * 200_000 + ",b\n")
    with pytest.raises(UserError, match="list cannot be read \\(field larger than field limit"):
        read_manifest(tmp_path / "list")
