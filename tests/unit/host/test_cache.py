"""Compiled programs are kept where the user says, in the home directory, or nowhere by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from opt_trt.errors import UserError
from opt_trt.host.cache import cache_dir


def test_the_directory_that_is_given_comes_first(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/given")
    assert cache_dir() == Path("/given/opt_trt")


def test_it_stays_where_it_is_when_the_program_goes_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_dir() == tmp_path / "cache" / "opt_trt"


def test_the_home_directory_is_the_default(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_dir() == Path("/home/me/.cache/opt_trt")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME to a directory"):
        cache_dir()
