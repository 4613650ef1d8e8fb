"""What is checked before an engine starts, on files of a tiny pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twins import edit, make_pair, make_reward_model, make_tokenizer, write_prompts

from expo_search.run import Checked, check
from expo_search.study import load_study

N_ROWS = 20


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_pair(tmp_path, "llama-tied")
    make_reward_model(tmp_path / "reward")
    write_prompts(tmp_path / "prompts.jsonl", N_ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(n: int | None = None, aligned: str = "aligned", **engine: Any) -> Checked:
    prompts = {"source": "prompts.jsonl"} | ({} if n is None else {"n": n})
    overrides = {
        "pair": {"aligned": aligned, "sft": "sft", "reward_model": "reward"},
        "prompts": prompts,
        "sampling": {"max_tokens": 8},
        "engine": {"max_model_len": 128} | engine,
    }
    return check(load_study(overrides=overrides), "sqlite:///test.db", lambda _: None)


def differing(a: Checked, b: Checked) -> set[str]:
    return {key for key in a.settings | b.settings if a.settings.get(key) != b.settings.get(key)}


@pytest.mark.usefixtures("home")
class TestPrompts:
    def test_a_small_source_is_not_used_up_by_the_search_where_nobody_said_how_many(self) -> None:
        found = checked()
        assert len(found.search_prompts) == 15
        fresh = found.confirm_prompts(None)
        assert len(fresh) == 5
        assert not {p.id for p in fresh} & {p.id for p in found.search_prompts}

    def test_the_study_goes_on_with_as_many_when_their_number_is_given(self) -> None:
        assert differing(checked(), checked(15)) == set()

    def test_all_of_them_can_be_asked_for(self) -> None:
        assert len(checked(N_ROWS).search_prompts) == N_ROWS


class TestSettings:
    def test_a_folder_is_the_same_however_its_path_is_spelled(self, home: Path) -> None:
        spelled = [checked(aligned=path) for path in ("aligned", "aligned/", "./aligned", str(home / "aligned"))]
        assert all(differing(spelled[0], other) == set() for other in spelled)

    def test_a_reward_model_that_was_trained_on_in_its_folder_is_another(self, home: Path) -> None:
        before = checked()
        edit(home / "reward", lambda _, t: t.mul_(1.5))
        assert differing(before, checked()) == {"files.reward_model"}

    def test_so_is_one_with_another_chat_template(self, home: Path) -> None:
        before = checked()
        tokenizer = make_tokenizer()
        tokenizer.chat_template += " "
        tokenizer.save_pretrained(home / "reward")
        assert differing(before, checked()) == {"reward.chat_template"}

    @pytest.mark.usefixtures("home")
    def test_another_number_of_ranks_is_named_since_fingerprints_are_by_rank(self) -> None:
        assert differing(checked(), checked(tensor_parallel=2)) == {"engine.tensor_parallel"}
