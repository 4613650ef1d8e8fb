"""What vLLM puts in place of a weight must land in the weight's old memory, where a CUDA graph reads it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expo_search.engine.worker.host_memory import Scratch, host_memory
from expo_search.engine.worker.live_memory import keeping_storage
from expo_search.errors import MaterializeError


class Packed(nn.Module):
    """Every way in which post-load processing swaps a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced = nn.Parameter(torch.zeros(3, 4))
        self.repointed = nn.Parameter(torch.zeros(3, 4))
        self.register_buffer("buffer", torch.zeros(5))
        self.absorbed = torch.zeros(2, 2)
        self.cache = torch.zeros(2, 3)

    def process(self, value: float) -> None:
        self.replaced = nn.Parameter(torch.full((3, 4), value))
        self.repointed.data = torch.full((3, 4), value)
        self.buffer = torch.full((5,), value)
        self.absorbed = torch.full((2, 2), value)
        self.cache = torch.full((3, 2), value)


NAMES = ("replaced", "repointed", "buffer", "absorbed")


def test_new_values_land_in_the_old_memory() -> None:
    module = Packed()
    addresses = {name: getattr(module, name).data_ptr() for name in NAMES}
    for value in (1.0, 2.0):
        with keeping_storage(module):
            module.process(value)
        for name in NAMES:
            assert getattr(module, name).data_ptr() == addresses[name]
            assert (getattr(module, name) == value).all()


def test_a_plain_attribute_of_another_shape_keeps_its_new_memory() -> None:
    module = Packed()
    with keeping_storage(module):
        module.process(3.0)
    assert module.cache.shape == (3, 2)
    assert (module.cache == 3).all()


def test_a_parameter_of_another_shape_is_an_error_since_graphs_would_go_on_reading_the_old_one() -> None:
    module = Packed()
    named = r"Packed, parameter replaced: torch.float32 \(4, 3\) after a switch, torch.float32 \(3, 4\) before it"
    with pytest.raises(MaterializeError, match=named), keeping_storage(module):
        module.replaced = nn.Parameter(torch.zeros(4, 3))


def test_the_same_memory_in_another_order_is_put_back_into_the_old_order() -> None:
    module = nn.Linear(4, 4, bias=False)
    captured, before = module.weight.data, module.weight.data.clone()
    with keeping_storage(module):
        module.weight.data = module.weight.data.t()
    assert torch.equal(captured, before.t())
    assert (module.weight.data_ptr(), module.weight.stride()) == (captured.data_ptr(), captured.stride())


def test_memory_that_did_not_move_is_left_alone() -> None:
    module = Packed()
    with keeping_storage(module):
        module.replaced.data.fill_(7)
    assert (module.replaced == 7).all()


def test_tensors_of_a_block_have_their_shapes_and_do_not_overlap() -> None:
    shapes = [((3, 5), torch.bfloat16), ((), torch.float32), ((0, 4), torch.float32), ((7,), torch.float32)]
    tensors = list(
        host_memory([(torch.Size(shape), dtype) for shape, dtype in shapes], pinned=torch.cuda.is_available())
    )
    for i, tensor in enumerate(tensors):
        tensor.fill_(i)
    assert [(tuple(t.shape), t.dtype) for t in tensors] == shapes
    assert all((tensor == i).all() and tensor.data_ptr() % 64 == 0 for i, tensor in enumerate(tensors))
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == 1
    assert all(tensor.is_pinned() for tensor in tensors) or not torch.cuda.is_available()


def test_scratch_hands_out_the_same_memory_after_a_reset_and_never_overlapping_pieces() -> None:
    scratch = Scratch()
    shapes = (torch.Size([3, 5]), torch.Size([7]))
    for _ in range(3):
        pieces = [scratch.take(shape, torch.bfloat16) for shape in shapes]
        for i, piece in enumerate(pieces):
            piece.fill_(i)
        assert all((piece == i).all() for i, piece in enumerate(pieces))
        inside = [scratch.holds(piece) for piece in pieces]
        scratch.reset()
    assert inside == [True, True]
    assert not scratch.holds(torch.zeros(3))
