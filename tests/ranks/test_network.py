"""Ranks on two hosts: this machine twice, with a cable between, and neither names nor shared memory in common."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests._processes import run
from tests.ranks.conftest import Run, StartRanks, mpirun
from tests.ranks.test_sessions import PROGRAM

NETWORK = "10.77.0"
AGENT = """#!/bin/sh
# {agent} ADDRESS COMMAND...: what ssh would do
host="{names}-${{1##*.}}"
shift
exec ip netns exec "$host" unshare --uts --mount sh -c "hostname $host; mount -t tmpfs tmpfs /dev/shm; $*"
"""


@dataclass(frozen=True)
class Hosts:
    """Two hosts, reachable from one another alone; `agent` runs commands there, as ssh does."""

    names: tuple[str, str]
    agent: Path
    hostfile: Path

    def mpirun(self) -> list[str]:
        """A launcher on the first host, for a rank on each."""
        flags = ("--hostfile", self.hostfile, "--prtemca", "plm_ssh_agent", self.agent)
        interface = ("--mca", "btl_tcp_if_include", f"{NETWORK}.0/24")
        words = " ".join(map(str, (*mpirun(2), *flags, *interface)))
        return [str(self.agent), f"{NETWORK}.1", words]


def ip(*words: str) -> str:
    done = run("ip", *words, timeout=20)
    done.check_returncode()
    return done.stdout


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root, and ip of the package iproute2, to make network namespaces")
    names = f"opt{os.getpid()}"
    first, second = f"{names}-1", f"{names}-2"
    try:
        ip("netns", "add", first)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr}")
    try:
        ip("netns", "add", second)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for number, host in enumerate((first, second), 1):
            ip("-n", host, "addr", "add", f"{NETWORK}.{number}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", host, "link", "set", link, "up")
        agent, hostfile = tmp_path / "agent", tmp_path / "hosts"
        agent.write_text(AGENT.format(agent=agent, names=names))
        agent.chmod(0o755)
        hostfile.write_text(f"{NETWORK}.1 slots=1\n{NETWORK}.2 slots=1\n")
        yield Hosts((first, second), agent, hostfile)
    finally:
        for host in (first, second):
            with suppress(subprocess.CalledProcessError):
                for pid in ip("netns", "pids", host).split():
                    os.kill(int(pid), signal.SIGKILL)
                ip("netns", "del", host)


StartOnHosts = Callable[[str], Run]


@pytest.fixture
def start_on_hosts(hosts: Hosts, start_ranks: StartRanks, tmp_path: Path) -> StartOnHosts:
    """Start a scenario on both hosts."""
    return lambda scenario: start_ranks.launch(hosts.mpirun(), *PROGRAM, scenario, "--directory", tmp_path)


def test_ranks_on_two_hosts_do_as_one_does(
    hosts: Hosts, start_on_hosts: StartOnHosts, start_ranks: StartRanks, tmp_path: Path
) -> None:
    alone = start_ranks(1, *PROGRAM, "serve", "--directory", tmp_path)
    assert alone.wait() == 0
    run = start_on_hosts("serve")
    assert run.wait() == 0, run.stderr
    assert run.output == alone.output
    assert [(tmp_path / f"host{rank}").read_text() for rank in range(2)] == list(hosts.names)
    leader, follower = [torch.load(tmp_path / f"caches{rank}.pt") for rank in range(2)]
    assert all(
        torch.equal(mine, theirs)
        for cache, other in zip(leader, follower, strict=True)
        for mine, theirs in zip(cache, other, strict=True)
    )


def test_a_rank_that_dies_on_another_host_is_named(hosts: Hosts, start_on_hosts: StartOnHosts, tmp_path: Path) -> None:
    run = start_on_hosts("kill")
    assert run.wait() != 0
    named = {line.partition(" was killed")[0] for line in run.errors}  # MPI may end those that were connected with it
    assert f"error: rank 1 on {hosts.names[1]}" in named
    assert run.leftovers() == []
