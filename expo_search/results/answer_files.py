"""A study's answers and rewards -> the files that ExPO's own scripts write and read, to the byte.

`outputs_ultrafeedback/NAME.jsonl` has {prompt, output, length, finish_reason} a line, and
`rewards_ultrafeedback/NAME.jsonl` one number, in the same order (its `generate_ultrafeedback.py` and
`evaluate_reward.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from expo_search.bench.task import generator_name
from expo_search.errors import StudyError
from expo_search.evaluation.result import Evaluation
from expo_search.results.atomic_file import written_whole
from expo_search.store.answer_rows import Stored
from expo_search.store.study_store import Store


def outputs_file(answers: Sequence[Stored]) -> bytes:
    """A line an answer, in their order."""
    rows = [
        {
            "prompt": s.completion.prompt.text,
            "output": s.completion.text,
            "length": s.completion.n_tokens,
            "finish_reason": s.completion.finish_reason,
        }
        for s in answers
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rewards_file(answers: Sequence[Stored]) -> bytes:
    """A line a reward, in the answers' order."""
    return "".join(json.dumps(s.reward) + "\n" for s in answers).encode()


def trial_files(store: Store, trials: Sequence[Evaluation]) -> dict[str, bytes]:
    """Both files of each trial, by their place below a folder; answers that are not rated yet are left out."""
    prompts = store.prompts("search")
    files: dict[str, bytes] = {}
    for e in trials:
        rated = [s for s in store.completions(e.trial, "search", prompts) if s.reward is not None]
        name = f"{generator_name(store.name, e.alpha)}.jsonl"
        files[f"outputs_ultrafeedback/{name}"] = outputs_file(rated)
        files[f"rewards_ultrafeedback/{name}"] = rewards_file(rated)
    return files


def check_folder(folder: Path, option: str) -> None:
    """Check that files can be put below a folder, or that it can be made.

    Raises:
        StudyError: it is a file.
    """
    taken = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if taken is not None:
        raise StudyError(
            where=f"{option} {folder}", found=f"{taken}, a file", expected="a folder", do="give another name"
        )


def write_files(files: Mapping[str, bytes], folder: Path, option: str) -> None:
    """Write files below a folder, in the place of those that are there; each is whole or as before.

    Raises:
        StudyError: they cannot be written.
    """
    check_folder(folder, option)
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as fresh:
                fresh.write_bytes(content)
    except OSError as fault:
        raise StudyError(
            where=f"{option} {folder}",
            found=fault.strerror or str(fault),
            expected="a folder that can be written to",
            do="check its permissions and the room on the disk",
        ) from None
