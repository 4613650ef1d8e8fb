"""Answers side by side, and a conversation whose alpha changes in the middle; with fakes, then with the real engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, FakeScorer, expected_reward, make_prompts
from rich.console import Console
from twins import make_pair, make_reward_model, write_prompts

from expo_search.cli.chat_session import Chat, parse_alphas
from expo_search.cli.talk import _Interrupt, _lines, chat, print_answers
from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.contracts import Completion, Prompt, Switch
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec
from expo_search.errors import MaterializeError, PromptsError, StudyError
from expo_search.evaluation.compare import Comparison, Rewarded, compare

NOT_TEXT = "caf\udce9"  # "café" in Latin-1, as Python hands on an argument that is not UTF-8


@dataclass
class FakeSpeaker:
    """Answers "alpha=X n=N.", piece by piece, N being the turns so far. `closed` counts answers that were ended."""

    alpha: float = 0.0
    seen: list[list[dict[str, str]]] = field(default_factory=list)
    closed: int = 0

    def materialize(self, alpha: float) -> Switch:
        if alpha > 100:
            raise MaterializeError(where=f"alpha {alpha:g}", found="weight w overflows", expected="finite", do="less")
        self.alpha = alpha
        return Switch(alpha, 0.25, "f")

    def stream(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int | None = None
    ) -> Generator[str, None, None]:
        if len(messages) > 5:
            raise PromptsError(where="the conversation", found="99 tokens", expected="fewer", do="begin a new one")
        self.seen.append([dict(m) for m in messages])
        try:
            for piece in (f"alpha={self.alpha:g} ", f"n={len(messages)}", "."):
                yield piece if max_tokens != 1 else "short"
        finally:
            self.closed += 1


def talk(*lines: str, stopped: Any = lambda: False) -> tuple[FakeSpeaker, Chat, str]:
    """What a conversation of these lines put on the screen."""
    written: list[str] = []
    speaker = FakeSpeaker()
    chat = Chat(speaker, 0.3, written.append, stopped)
    chat.open()
    for line in lines:
        if not chat.hear(line):
            break
    return speaker, chat, "".join(written)


class TestCompare:
    @pytest.mark.parametrize(
        ("text", "alphas"), [("0,0.3,1", [0, 0.3, 1]), (" -0.5 , 2e1", [-0.5, 20]), ("1,1.0,0", [1, 0])]
    )
    def test_alphas_are_numbers_between_commas_each_once(self, text: str, alphas: list[float]) -> None:
        assert parse_alphas(text) == alphas

    @pytest.mark.parametrize("text", ["", "a", "0,,1", "nan", "0,inf", "0;1", "0,1e39", "-1e300"])
    def test_anything_else_is_one_clear_line(self, text: str) -> None:
        with pytest.raises(StudyError, match="--alphas"):
            parse_alphas(text)

    def test_every_prompt_is_answered_at_every_alpha_and_scored(self) -> None:
        model, prompts, said = FakeModel(), make_prompts(4), list[str]()
        rows = compare(model, FakeScorer(), [0.5, 0.0], prompts, 0, said.append).rows
        assert model.alphas == [0.5, 0.0]
        for prompt, row in zip(prompts, rows, strict=True):
            assert [json.loads(a.completion.text) for a in row] == [[0.5, prompt.id], [0.0, prompt.id]]
            assert [a.reward for a in row] == [expected_reward(a, prompt) for a in (0.5, 0.0)]
        assert len(said) == 2

    @pytest.mark.parametrize("width", [40, 120])
    def test_answers_are_shown_whole_whatever_the_width_and_steer_no_terminal(self, width: int) -> None:
        prompt = Prompt("p", "What is [bold]this[/bold]?\x1b[2J")
        row = [Rewarded(a, Completion(prompt, f"at {a} \x1b[31m[red]", 9, "length"), 1.5) for a in (0.0, 0.3)]
        console = Console(width=width, color_system=None)
        with console.capture() as captured:
            print_answers(console, Comparison([prompt], [row]))
        text = captured.get()
        assert "[bold]this[/bold]?" in text
        assert "at 0.0 �[31m[red] [cut off]" in text
        assert "alpha = 0.3   reward +1.500" in " ".join(text.split("\n"))
        assert "\x1b" not in text

    def test_a_long_prompt_breaks_no_word_on_a_terminal(self) -> None:
        words = " ".join(f"word-{i}" for i in range(40))
        prompt = Prompt("1", words)
        answer = Rewarded(0.0, Completion(prompt, "short", 1, "stop"), 0.5)
        console = Console(width=60, force_terminal=True, color_system=None)
        with console.capture() as captured:
            print_answers(console, Comparison([prompt], [[answer]]))
        assert max(map(len, captured.get().splitlines())) <= 60
        assert words in " ".join(captured.get().split())


class TestChat:
    def test_the_conversation_grows_turn_by_turn(self) -> None:
        speaker, chat, _ = talk("Hello", "  And then? ")
        assert [m["content"] for m in speaker.seen[1]] == ["Hello", "alpha=0.3 n=1.", "And then?"]
        assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2

    def test_alpha_changes_in_the_middle_and_the_conversation_stays(self) -> None:
        speaker, _, text = talk("Hello", "/alpha 1.5", "Again")
        assert "(alpha = 0.3, switched in 0.25 s)\nalpha=0.3 n=1.\n(alpha = 1.5, switched in 0.25 s)\n" in text
        assert text.endswith("alpha=1.5 n=3.\n")
        assert len(speaker.seen[1]) == 3

    def test_an_alpha_at_which_weights_overflow_leaves_the_old_one(self) -> None:
        _, chat, text = talk("/alpha 1000", "Hello")
        assert "(weight w overflows: still at alpha = 0.3)" in text
        assert text.endswith("alpha=0.3 n=1.\n")
        assert chat.alpha == 0.3

    @pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -1e39])
    def test_an_alpha_to_begin_at_that_makes_no_weights_is_refused_before_anything_starts(self, alpha: float) -> None:
        with pytest.raises(StudyError, match=re.escape(f"--alpha: {alpha}; expected")):
            chat("s", alpha, storage="sqlite:///there/is/none.db")

    def test_a_line_with_what_is_no_text_is_heard_without_it(self) -> None:
        speaker, _, _ = talk(f"{NOT_TEXT}?")
        assert speaker.seen[0][0]["content"] == "caf??"

    def test_bytes_on_standard_input_that_are_not_utf_8_end_no_conversation(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"caf\xe9\nAgain\n"), "utf-8"))
        assert [*_lines(lambda _: None)] == ["caf�\n", "Again\n"]

    @pytest.mark.parametrize("alpha", ["", "x", "nan", "1e39"])
    def test_what_is_no_alpha_changes_nothing_and_is_named(self, alpha: str) -> None:
        speaker, chat, text = talk(f"/alpha {alpha}")
        assert f"({alpha or 'nothing'} is no number that is finite in float32)" in text
        assert (speaker.seen, chat.alpha) == ([], 0.3)

    @pytest.mark.parametrize("line", ["/help", "/what", "/"])
    def test_what_is_no_command_shows_the_commands(self, line: str) -> None:
        speaker, chat, text = talk(line)
        assert "/reset" in text
        assert (speaker.seen, chat.alpha) == ([], 0.3)

    def test_a_misspelt_command_names_the_one_that_was_meant(self) -> None:
        assert "no command /alhpa; did you mean /alpha?" in talk("/alhpa 1")[2]
        assert "did you mean" not in talk("/help", "/xyzzy")[2]

    def test_reset_forgets_and_quit_ends(self) -> None:
        speaker, chat, _ = talk("Hello", "/reset", "", "Anew", "/quit", "not heard")
        assert [len(messages) for messages in speaker.seen] == [1, 1]
        assert chat.messages[0]["content"] == "Anew"

    def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(self) -> None:
        speaker, chat, text = talk("Hello", stopped=lambda: True)
        assert text.endswith("alpha=0.3  (stopped)\n")
        assert chat.messages[1] == {"role": "assistant", "content": "alpha=0.3 "}
        assert speaker.closed == 1

    def test_a_conversation_that_no_longer_fits_can_be_begun_anew(self) -> None:
        _, chat, text = talk("1", "2", "3", "4", "/reset", "5")
        assert "99 tokens" in text
        assert len(chat.messages) == 2

    def test_a_first_interrupt_is_noted_and_a_second_one_is_real(self) -> None:
        before, interrupt = signal.getsignal(signal.SIGINT), _Interrupt()
        with interrupt:
            assert not interrupt()
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    make_pair(folder, "llama-tied", delta=0.2)
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> Iterator[VllmModel]:
    sampling, engine = SamplingSpec(max_tokens=12, temperature=0.0), EngineSpec(max_model_len=128)
    model = VllmModel(ModelSpec(home / "aligned", home / "sft", sampling, engine, 42))
    yield model
    model.close()


class TestRealEngine:
    def test_a_stream_of_one_turn_says_what_generate_says(self, model: VllmModel) -> None:
        prompt = Prompt("p", "Tell me 3 things about bread.")
        model.materialize(0.5)
        (whole,) = [c for c in model.generate([prompt], 42) if isinstance(c, Completion)]
        pieces = list(model.stream([{"role": "user", "content": prompt.text}]))
        assert "".join(pieces) == whole.text
        assert len(pieces) > 1

    def test_an_answer_that_is_stopped_leaves_the_engine_idle(self, model: VllmModel) -> None:
        with closing(model.stream([{"role": "user", "content": "Hello"}])) as pieces:
            next(pieces)
        assert model.materialize(0.0).fingerprint == model.sources.aligned
        assert len(list(model.stream([{"role": "user", "content": "Hello"}], 3))) <= 3

    def test_a_conversation_longer_than_the_context_is_refused(self, model: VllmModel) -> None:
        with pytest.raises(PromptsError, match="fewer than the context of 128"):
            list(model.stream([{"role": "user", "content": "x" * 200}]))

    def test_a_real_conversation_goes_on_over_a_change_of_alpha(self, model: VllmModel) -> None:
        written: list[str] = []
        chat = Chat(model, 0.0, written.append)
        chat.open()
        chat.hear("Hi")
        chat.hear("/alpha 2")
        chat.hear("Hi")
        assert len(chat.messages) == 4
        assert "(alpha = 2, switched in " in "".join(written)


@pytest.mark.slow
def test_the_commands_talk_through_one_engine_and_add_nothing_to_the_study(home: Path) -> None:
    make_reward_model(home / "reward")
    write_prompts(home / "prompts.jsonl", 10)
    pair = ["--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl"]
    sizes = ["--n-prompts", "6", "--max-tokens", "12", "--max-model-len", "128", "--alpha-max", "2", "--trials", "2"]

    def run(*arguments: str, said: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "expo_search", *arguments],
            cwd=home, text=True, input=said, capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + (home / "expo-search.log").read_text()[-3000:]
        return done.stdout

    run(*pair, *sizes)
    before = run("show", "--json")
    read_only = ["--storage", f"sqlite:///file:{home / 'expo-search.db'}?mode=ro&uri=true"]
    found = json.loads(run("compare", "--alphas", "0,1.5", "-n", "2", "--json", "--quiet", *read_only))
    assert [[a["alpha"] for a in p["answers"]] for p in found["prompts"]] == [[0, 1.5]] * 2
    text = run("chat", "--alpha", "1", "--max-tokens", "5", *read_only, said="Hello\n/alpha 0.25\nHello again\n")
    assert "(alpha = 1, switched in " in text
    assert "(alpha = 0.25, switched in " in text
    assert run("show", "--json") == before
