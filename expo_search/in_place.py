"""A model's modules -> what the compiled kernel can write right where the engine reads it, all in one go.

That is: weights that the engine keeps in load layout, and matrices that oneDNN packed and whose memory was found
(`packed.py`). Only on a CPU, only bfloat16; all else goes module by module (`materializer.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from expo_search.fingerprint import Fingerprinter, line
from expo_search.kernel import Kernel, Plan, Task
from expo_search.loader import Weight
from expo_search.packed import Packed, handler_of, locate, packed_bytes


@dataclass(eq=False)
class SwitchedModule:
    """A module that has weights to switch, or that derives something from another's.

    Attributes:
        own: its weights. matrix: the one that its product is computed with; may be another module's, tied.
        derives: whether vLLM makes something of them after loading.
        packed: where its packed matrix lies, once found. is_hidden: it was looked for, and not found.
    """

    module: nn.Module
    own: list[Weight]
    matrix: Weight | None
    derives: bool
    packed: Packed | None = None
    is_hidden: bool = False


class Target(NamedTuple):
    """A weight, where to write it, and the packed matrix among that. `is_own`: it is the module's own."""

    weight: Weight
    task: Task
    packed: Packed | None
    is_own: bool


class InPlace:
    """Finds targets among a model's modules, and writes them. Without a kernel it has none."""

    def __init__(self, kernel: Kernel | None, modules: Sequence[SwitchedModule]) -> None:
        self._kernel, self._modules, self._fingerprinter = kernel, modules, Fingerprinter()
        self._seen: list[object] = []
        self._targets: list[Target] = []
        self._others: list[SwitchedModule] = []
        self._plan = Plan([])

    def others(self) -> list[SwitchedModule]:
        """As the engine stands now: the modules that have to go the other way, in order. All else is a target."""
        for module in self._modules:
            if module.packed is not None and module.packed.handler is not handler_of(module.module):
                module.packed = None  # vLLM packed anew: that memory is no longer read
        seen = [_whereabouts(module) for module in self._modules]
        if seen != self._seen:
            self._seen, found = seen, [self._targets_of(module) for module in self._modules]
            self._targets = [target for targets in found for target in targets or ()]
            self._plan = Plan([target.task for target in self._targets])
            self._others = [m for m, targets in zip(self._modules, found, strict=True) if targets is None]
        return self._others

    def write(self, alpha: float, *, reread: bool) -> list[str]:
        """Write theta(alpha) into all targets that `others` found; lines of their fingerprint.

        The lines are of what was written, or with `reread` of what the memory holds afterwards.
        """
        if self._kernel is None:
            return []
        sums = self._kernel.run(self._plan, alpha)
        if reread:
            sums = [self._fingerprinter.tensor_sum(_memory(target)) for target in self._targets]
        return [
            line(target.weight.name, target.weight.aligned, tensor_sum)
            for target, tensor_sum in zip(self._targets, sums, strict=True)
            if target.is_own
        ]

    def find(self, module: SwitchedModule, alpha: float) -> None:
        """Look for the matrix that vLLM just packed at alpha, so that the next switch can write it in place."""
        handler, matrix, kernel = handler_of(module.module), module.matrix, self._kernel
        if kernel is None or handler is None or matrix is None or module.is_hidden or not self._is_known(matrix):
            return

        def image(panel: int) -> torch.Tensor:
            blocks = torch.empty(packed_bytes(matrix.shape, panel), dtype=torch.uint8)
            kernel.run(Plan([Task(matrix.aligned, matrix.sft, None, blocks.data_ptr(), panel)]), alpha)
            return blocks

        module.packed = locate(handler, matrix.shape, image)
        module.is_hidden = module.packed is None

    def _targets_of(self, module: SwitchedModule) -> list[Target] | None:
        """None: something of the module cannot be written in place."""
        if module.derives and module.packed is None:
            return None
        targets = []
        for weight in module.own:
            packed = module.packed if weight is module.matrix else None
            plain = weight.tensor.data if weight.tensor.shape == weight.shape else None
            targets.append(Target(weight, _task(weight, plain, packed), packed, is_own=True))
        if module.packed is not None and module.matrix is not None and module.matrix not in module.own:
            task = _task(module.matrix, None, module.packed)
            targets.append(Target(module.matrix, task, module.packed, is_own=False))
        return targets if all(self._can_write(target) for target in targets) else None

    def _can_write(self, target: Target) -> bool:
        weight, plain = target.weight, target.task.plain
        if not self._is_known(weight) or (plain is None and target.packed is None):
            return False
        if plain is None:
            return not weight.views
        own_storage = weight.tensor.untyped_storage().data_ptr()
        return (
            Kernel.takes(plain)
            and weight.slots.get(weight.attribute) is weight.tensor
            and all(view.untyped_storage().data_ptr() == own_storage for view, *_ in weight.views)
        )

    def _is_known(self, weight: Weight) -> bool:
        """Whether the kernel knows the arithmetic of this weight."""
        return self._kernel is not None and weight.dtype == torch.bfloat16 and Kernel.takes(weight.aligned, weight.sft)


def _whereabouts(module: SwitchedModule) -> object:
    """Changes when a target of the module does."""
    own = [(weight.tensor.data_ptr(), id(weight.slots.get(weight.attribute))) for weight in module.own]
    return own, module.packed and module.packed.address


def _task(weight: Weight, plain: torch.Tensor | None, packed: Packed | None) -> Task:
    return Task(weight.aligned, weight.sft, plain, packed.address if packed else None, packed.panel if packed else 0)


def _memory(target: Target) -> torch.Tensor:
    """What the engine would read now, in load layout."""
    if target.packed is not None:
        return target.packed.matrix()
    assert target.task.plain is not None
    return target.task.plain
