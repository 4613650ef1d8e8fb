"""A study with a winner -> a study of shapes beside it: opened, searched, confirmed on one running engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.contracts import LayeredModel, Model
from expo_search.errors import StudyError
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.search.shape_search import begin
from expo_search.search.shapes import Beginning, Shapes, read_shapes
from expo_search.session.running import Running
from expo_search.stats.paired import Kind
from expo_search.store.attributes import stored_attributes
from expo_search.store.study_store import Store
from expo_search.weights.shape import count_layers, dimensions


def n_layers(aligned: Path, kind: str, model: Model | None) -> int:
    """How many layers the pair's model has, for shapes of a kind; `model`: one of the user's own, or None.

    Raises:
        StudyError: no such kind; layers that no shape can be laid over; a model that does not say how many it has.
    """
    dimensions(kind)
    if model is None:
        return count_layers(open_checkpoint(aligned, role="aligned").tensors, kind)
    if isinstance(model, LayeredModel):
        return int(model.n_layers)
    raise StudyError(
        where=f"--shape {kind}",
        found="a model of your own without n_layers",
        expected="one whose materialize takes an alpha for each weight (contracts.LayeredModel)",
        do="give it n_layers, and ask weights.shape.alpha_of for each weight",
    )


def stored_shapes(url: str, beginning: Beginning, kind: Kind) -> Shapes:
    """A search for a shape as the database has it; one without trials where there is none. Writes nothing."""
    there = stored_attributes(url, beginning.name)
    if there is None or there.shapes is None:
        return Shapes(beginning)
    store = Store(url, beginning.name, read_only=True)
    try:
        return read_shapes(store, kind)
    finally:
        store.close()


@contextmanager
def shape_store(
    running: Running, beginning: Beginning, evaluated: list[Evaluation], say: Callable[[str], None]
) -> Iterator[Store]:
    """The study of shapes, made where it is new. `evaluated`: the trials of the study that it starts from."""
    trials = {e.trial: e for e in evaluated}
    store = Store(running.checked.storage, beginning.name, say=say)
    try:
        begin(store, running.store, beginning, trials[beginning.trial], trials[CONTROL])
        yield store
    finally:
        store.close()
