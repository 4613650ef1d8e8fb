"""Memory that processes share by name: found when it is whole, held once, and gone with the last process."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest
import torch

from expo_search.engine.worker import host_memory
from expo_search.engine.worker.node_memory import NodeMemory, held_bytes
from expo_search.engine.worker.source_buffers import Form, SourceBuffers

SIZE = 64 << 20
HOLDER = """
import sys
from expo_search.engine.worker.node_memory import NodeMemory
name, size, does = sys.argv[1], int(sys.argv[2]), sys.argv[3]
block = NodeMemory.of(name, size)
if not block.is_whole:
    block.memory[:] = b"7" * size
if "seals" in does:
    block.seal()
sum(block.memory[::4096])
print(block.is_whole, flush=True)
sys.stdin.read()
"""
Hold = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def name() -> str:
    return f"test {uuid.uuid4().hex}"


@pytest.fixture
def hold(name: str) -> Iterator[Hold]:
    """Starts a process that holds the block until it is killed; returns when it does."""
    holders: list[subprocess.Popen[str]] = []

    def start(does: str = "fills and seals", size: int = SIZE) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLDER, name, str(size), does]
        holders.append(subprocess.Popen(words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert holders[-1].stdout is not None
        assert holders[-1].stdout.readline() == f"{'seals' in does}\n"
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def end(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()


def test_it_is_there_once_while_anyone_holds_it_and_gone_when_the_last_was_killed(name: str, hold: Hold) -> None:
    first = hold()
    second = hold()
    assert held_bytes(name) == SIZE
    end(first)
    assert held_bytes(name) == SIZE
    third = NodeMemory.of(name, SIZE)
    assert third.is_whole
    assert third.memory[:4] + third.memory[-4:] == b"7" * 8
    end(second)
    assert held_bytes(name) == SIZE
    del third
    assert held_bytes(name) == 0


def test_two_processes_pay_for_it_half_each(name: str, hold: Hold) -> None:
    alone = [hold().pid]
    n_alone = pss(alone)
    both = [*alone, hold().pid]
    more = pss(both) - n_alone
    assert more < SIZE / 2, "a process that shares takes its interpreter's memory and no more"
    for pid in both:
        shared = [m for m in psutil.Process(pid).memory_maps() if name in m.path]
        assert sum(m.rss for m in shared) == SIZE
        assert sum(m.pss for m in shared) == SIZE // 2


def pss(pids: list[int]) -> int:
    """Bytes that processes take, where each of those that share a page has its part of it."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)


def test_what_is_not_whole_or_of_another_size_or_name_is_not_taken(name: str, hold: Hold) -> None:
    hold("fills it")
    assert held_bytes(name) == 0
    assert not NodeMemory.of(name, SIZE).is_whole
    hold()
    assert held_bytes(name) == SIZE
    assert not NodeMemory.of(name, 2 * SIZE).is_whole
    assert not NodeMemory.of(f"{name}x", SIZE).is_whole
    assert held_bytes(f"{name}x") == 0


def test_sources_are_filled_by_one_and_compared_by_the_next(name: str) -> None:
    forms = [
        Form("a", torch.Size([3, 5]), torch.float32, torch.device("cpu")),
        Form("b", torch.Size([7]), torch.bfloat16, torch.device("cpu")),
    ]
    numbers = [torch.arange(15.0).view(3, 5) / 7, torch.arange(7).bfloat16()]
    first = SourceBuffers.of(forms, on_host=True, shared=name)
    assert not first.are_whole
    first.tensors[0].copy_(numbers[0])
    assert first.kept(0, first.tensors[0]) is first.tensors[0]
    assert first.kept(1, numbers[1]) is first.tensors[1], "a load that puts other memory in a buffer's place is copied"
    first.seal()
    second = SourceBuffers.of(forms, on_host=True, shared=name)
    assert second.are_whole
    assert second.kept(0, numbers[0].bfloat16()) is second.tensors[0], "compared as the live weight rounds it"
    assert second.kept(1, numbers[1].float()) is second.tensors[1]
    assert second.kept(1, numbers[1] + 1) is None
    assert [torch.equal(t, n) for t, n in zip(second.tensors, numbers, strict=True)] == [True, True]
    other = SourceBuffers.of([forms[0], replace(forms[1], name="c")], on_host=True, shared=name)
    assert not other.are_whole


def test_without_such_memory_each_has_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    tensors, block = host_memory.node_memory(name, [(torch.Size([4]), torch.float32)], pinned=False)
    assert block is None
    assert next(tensors).fill_(1).sum() == 4
