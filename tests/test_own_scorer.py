"""A scorer that a study names, a Python function or a command: loaded, tried out, rating a search, and kept with it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import commands
import pytest
from fakes import BEST, FakeModel, opened
from twins import make_pair, write_prompts

import expo_search as es
from expo_search.cli.main import app
from expo_search.config.own_scorer import beside, from_folder, function_of, shortened
from expo_search.config.presets import load_study
from expo_search.config.spec import RewardSpec
from expo_search.contracts import Completion, Prompt
from expo_search.errors import RewardError, SettingsChanged, StudyError
from expo_search.evaluation.own_scorer import CommandScorer, FunctionScorer, OwnScorer, load_scorer
from expo_search.inputs.own_function import load_function
from expo_search.store.study_store import Store

# the answer of a `FakeModel` is a JSON list with alpha first
RATES = """
    import json, math

    def rate(answer):
        alpha = json.loads(answer)[0] if answer.startswith("[") else 9
        return 1 + len(answer) % 7 / 10 - (alpha - 0.37) ** 2
"""
FUNCTION = RATES + "\n    def score(prompts, answers):\n        return [rate(answer) for answer in answers]\n"
COMMAND = RATES + "\n    import sys\n    for line in sys.stdin:\n        print(rate(json.loads(line)['answer']))\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_prompts(tmp_path / "prompts.jsonl", 48)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, code: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(textwrap.dedent(code))
    return file


def answers(*texts: str) -> list[Completion]:
    return [Completion(Prompt(f"p{i}", f"Question {i}?"), text, 3, "stop") for i, text in enumerate(texts)]


def scores(scorer: OwnScorer, *texts: str) -> list[float]:
    seen: list[int] = []
    numbers, n_cut = scorer.score(answers(*texts), seen.append)
    assert (n_cut, seen) == (0, [len(texts)])
    return numbers


class TestNames:
    @pytest.mark.parametrize(
        ("named", "found"),
        [
            ("mine:score", ("mine", "score")),
            ("a.b:score", ("a.b", "score")),
            ("mine.py:score", ("mine.py", "score")),
            ("/a folder/mine.py:score", ("/a folder/mine.py", "score")),
            ("./rate --fast", None),
            ("rate", None),
            ("my-module:score", None),
            ("mine:", None),
            ("mine.py", None),
        ],
    )
    def test_what_looks_like_a_function_is_one_and_all_else_a_command(
        self, named: str, found: tuple[str, str] | None
    ) -> None:
        assert function_of(named) == found

    def test_a_study_files_scorer_lies_beside_the_file(self, tmp_path: Path) -> None:
        folder = tmp_path / "studies of mine"
        write(folder / "mine.py", "")
        write(folder / "python", "")
        assert beside("mine.py:score", folder) == f"{folder}/mine.py:score"
        assert beside("mine:score", folder) == "mine:score"
        assert beside("python mine.py --fast", folder) == f"python '{folder}/mine.py' --fast"
        assert beside("./mine.py 'a b'", folder) == f"'{folder}/mine.py' 'a b'"
        assert beside("jq -n 'a  b'", folder) == "jq -n 'a  b'"

    def test_a_file_in_a_home_is_found_from_a_study_file_too(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(home))
        write(home / "rate.py", FUNCTION)
        assert beside("~/rate.py:score", home / "sub") == f"{home}/rate.py:score"
        assert FunctionScorer("~/rate.py:score").identity == FunctionScorer("rate.py:score").identity
        command = "python3 ~/rate.py --fast"
        assert beside(command, home / "sub") == command
        assert CommandScorer(command, 60).identity == CommandScorer("python3 rate.py --fast", 60).identity
        assert shortened(command) == "python3 ./rate.py --fast"

    def test_a_stored_studys_files_are_found_where_its_search_ran_unless_they_are_here(self, home: Path) -> None:
        write(home / "rate.py", "")
        there = write(home / "there" / "mine.py", "").parent
        write(there / "rate.py", "")
        assert from_folder("mine.py:score", there) == f"{there}/mine.py:score"
        assert from_folder("./mine.py --fast", there) == f"{there}/mine.py --fast"
        for stays in ("rate.py:score", "gone.py:score", "mine:score", "python3 rate.py  --fast", "mine.py"):
            assert from_folder(stays, there) == stays

    def test_a_program_beside_the_working_folder_stays_a_path(self, home: Path) -> None:
        write(home / "rate", "")
        assert beside("./rate -x", Path()) == "./rate -x"

    def test_no_folder_of_this_machine_is_in_what_is_shown_to_others(self, home: Path) -> None:
        write(home / "rate.py", "")
        assert shortened(f"{home}/rate.py:score") == "./rate.py:score"
        assert shortened(f"python {home}/rate.py --fast") == "python ./rate.py --fast"
        assert shortened("mine:score") == "mine:score"


class TestFunctions:
    def test_it_gets_prompts_and_answers_and_returns_numbers_of_any_kind(self, home: Path) -> None:
        write(
            home / "any.py",
            """
            import numpy, torch
            def words(prompts, answers):
                assert all(p.startswith("Question") or p.endswith((".", "?")) for p in prompts)
                return (len(a.split()) for a in answers)
            def right(prompts, answers): return [a == "4" for a in answers]
            def array(prompts, answers): return numpy.array([len(a) for a in answers], "float32")
            def tensor(prompts, answers): return torch.tensor([float(len(a)) for a in answers])
            class Judge:
                def __call__(self, prompts, answers, scale=2): return [scale * len(a) for a in answers]
            judge = Judge()
            """,
        )
        expected = {"words": [2, 0], "right": [0, 0], "array": [3, 0], "tensor": [3, 0], "judge": [6, 0]}
        for name, numbers in expected.items():
            scorer = FunctionScorer(f"any.py:{name}")
            scorer.try_out()
            assert scores(scorer, "a b", "") == numbers

    def test_a_module_is_found_in_the_working_folder_and_a_file_finds_what_lies_beside_it(self, home: Path) -> None:
        write(home / "sub" / "beside_it.py", "def length(a): return len(a)\n")
        code = "from beside_it import length\ndef score(prompts, answers): return [length(a) for a in answers]\n"
        write(home / "sub" / "mine.py", code)
        write(home / "in_the_folder.py", "def score(prompts, answers): return [1.0 for _ in answers]\n")
        before = list(sys.path)
        assert scores(FunctionScorer("sub/mine.py:score"), "abc") == [3]
        assert scores(FunctionScorer("in_the_folder:score"), "abc") == [1]
        assert sys.path == before

    def test_a_module_that_was_edited_since_it_was_imported_is_run_anew_as_in_a_notebook(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(home)
        write(home / "edited.py", "def score(prompts, answers): return [1 for _ in answers]\n")
        importlib.import_module("edited")  # by the notebook
        identities = set()
        for number in (10, 100):  # of other lengths: Python's own cache goes by length and second
            write(home / "edited.py", f"def score(prompts, answers): return [{number} for _ in answers]\n")
            for _ in range(2):
                scorer = FunctionScorer("edited:score")
                assert scores(scorer, "abc") == [number]
                identities.add(scorer.identity)
        assert len(identities) == 2

    def test_a_file_that_was_changed_is_another_scorer_wherever_it_lies(self, home: Path) -> None:
        write(home / "mine.py", FUNCTION)
        write(home / "moved" / "mine.py", FUNCTION)
        first = FunctionScorer("mine.py:score")
        assert first.identity.startswith("mine.py:score#")
        assert FunctionScorer(str(home / "moved" / "mine.py") + ":score").identity == first.identity
        write(home / "mine.py", FUNCTION + "\n    # another\n")
        assert FunctionScorer("mine.py:score").identity != first.identity

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ("raise KeyError('no weights')", "KeyError: 'no weights'"),
            ("import sys; sys.exit(3)", "SystemExit: 3"),
            ("score = 3", "a int; expected a function"),
            ("def other(): ...", "AttributeError"),
            ("def score(answers): return []", "cannot be called with two lists"),
            ("def score(", "SyntaxError"),
        ],
    )
    def test_what_is_wrong_with_it_is_one_line(self, home: Path, code: str, said: str) -> None:
        write(home / "wrong.py", code)
        with pytest.raises(StudyError) as fault:
            FunctionScorer("wrong.py:score")
        assert fault.value.where == "scorer wrong.py:score"
        assert said in str(fault.value)
        with pytest.raises(StudyError, match=r"no such file: none.py"):
            load_function("none.py:score")

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("raise ValueError('too\\n long')", "ValueError: too long"),
            ("raise SystemExit(1)", "SystemExit: 1"),
            ("return None", "TypeError: 'NoneType' object is not iterable"),
            ("return [1.0]", "1 number for 2 answers"),
            ("return [1.0, 2.0, 3.0]", "3 numbers for 2 answers"),
            ("return [1.0, float('nan')]", "nan for the answer to prompt p1; expected a finite number"),
            ("return [1.0, 'good']", "'good' in the place of a number"),
            ("return [1.0, None]", "'None' in the place of a number"),
            ("return '12'", "a str; expected"),
            ("return {'a': 1, 'b': 2}", "a dict; expected"),
            ("yield 1.0; raise OSError('gone')", "OSError: gone"),
        ],
    )
    def test_what_it_does_wrong_is_one_line_that_names_it(self, home: Path, body: str, said: str) -> None:
        write(home / "wrong.py", f"def score(prompts, answers):\n    {body}\n")
        with pytest.raises(RewardError) as fault:
            scores(FunctionScorer("wrong.py:score"), "a", "")
        assert said in str(fault.value)
        assert fault.value.where == "scorer wrong.py:score"
        assert "\n" not in str(fault.value)


class TestCommands:
    def test_it_reads_a_json_object_a_line_and_prints_a_number_a_line(self, home: Path) -> None:
        write(
            home / "rate.py",
            """
            import json, sys
            rows = [json.loads(line) for line in sys.stdin]
            print("not for us", file=sys.stderr)
            for row in rows:
                assert set(row) == {"prompt", "answer", "prompt_id", "n_tokens", "finish_reason"}, row
                print(len(row["answer"]) + (0.5 if row["prompt"].startswith("Question") else 0))
            """,
        )
        scorer = CommandScorer(f"{sys.executable} rate.py", 60)
        scorer.try_out()
        assert scores(scorer, "ab", "", "line one\nline two\u2028\U0001f600") == [2.5, 0.5, 19.5]

    def test_it_is_its_words_with_the_content_of_its_files(self, home: Path) -> None:
        write(home / "rate.py", COMMAND)
        write(home / "moved" / "rate.py", COMMAND)
        identity = CommandScorer("python3 rate.py --fast", 60).identity
        assert identity.startswith("python3 'rate.py#")
        assert identity.endswith(" --fast")
        assert CommandScorer("python3 moved/rate.py --fast", 60).identity == identity
        assert CommandScorer("python3 rate.py", 60).identity != identity
        write(home / "rate.py", COMMAND + "\n    # another\n")
        assert CommandScorer("python3 rate.py --fast", 60).identity != identity

    @pytest.mark.usefixtures("home")
    @pytest.mark.parametrize("command", ["no-such-program --fast", "./no-such-file", "prompts.jsonl", "''"])
    def test_a_program_that_is_not_there_is_told_at_once(self, command: str) -> None:
        with pytest.raises(StudyError, match=r"no program .*; expected module:function, FILE.py:function or a command"):
            CommandScorer(command, 60)

    def test_a_quotation_mark_that_is_not_closed_is_told_too(self) -> None:
        with pytest.raises(StudyError, match="no closing quotation"):
            load_scorer(RewardSpec(scorer="rate 'a"))

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ("import sys; sys.exit('no model there')", "exit code 1: no model there"),
            ("raise OSError('gone')", "exit code 1: OSError: gone"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
            ("import os; os.kill(os.getpid(), 40)", "ended by signal 40"),
            ("print(1)", "1 number for 2 answers"),
            ("", "0 numbers for 2 answers"),
            ("print(1); print('inf')", "inf for the answer to prompt p1"),
            ("print(1); print('two')", "'two' in the place of a number"),
            ("import sys; sys.stdin.close(); print(1); print(2); sys.exit(4)", "exit code 4"),
        ],
    )
    def test_what_it_does_wrong_is_one_line_that_names_it(self, home: Path, code: str, said: str) -> None:
        write(home / "rate.py", code)
        with pytest.raises(RewardError) as fault:
            scores(CommandScorer(f"{sys.executable} rate.py", 60), "a", "")
        assert said in str(fault.value)
        assert fault.value.where == f"scorer {sys.executable} rate.py"

    def test_one_that_does_not_end_is_ended_with_all_that_it_started(self, home: Path) -> None:
        write(home / "rate.sh", "sleep 600 &\necho $! >child\nsleep 600\n")  # a shell: Python may take 2 s to start
        with pytest.raises(RewardError, match=r"no end within 2 s; expected its numbers by then"):
            scores(CommandScorer("sh rate.sh", 2), "a")
        assert ends(int((home / "child").read_text()))

    def test_what_it_leaves_behind_ends_with_it_and_is_not_waited_for(self, home: Path) -> None:
        write(home / "rate.sh", "sleep 600 &\necho $! >child\necho 1\n")
        assert scores(CommandScorer("sh rate.sh", 60), "a") == [1]
        assert ends(int((home / "child").read_text()))

    def test_what_it_starts_in_a_session_of_its_own_is_not_waited_for_either(self, home: Path) -> None:
        write(home / "rate.sh", "setsid sh -c 'echo $$ >child; sleep 600' &\nsleep 600\n")
        with pytest.raises(RewardError, match="no end within 2 s"):
            scores(CommandScorer("sh rate.sh", 2), "a")
        os.kill(int((home / "child").read_text()), signal.SIGKILL)


def ends(pid: int) -> bool:
    """Whether a process ends soon."""
    end = time.monotonic() + 30
    while time.monotonic() < end and is_running(pid):
        time.sleep(0.05)
    return not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, which nobody may have collected yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def study(scorer: str | None, **pair: str) -> es.StudySpec:
    overrides: dict[str, dict[str, Any]] = {
        "pair": {"sft": "my/sft", "aligned": "my/aligned", **pair},
        "prompts": {"source": "prompts.jsonl", "n": 32},
        "search": {"seed": 1, "sampler": "grid", "racing": False, "alpha_max": 1.0},
    }
    return es.load_study(name="mine", overrides=overrides | ({"reward": {"scorer": scorer}} if scorer else {}))


@pytest.fixture(params=["function", "command"])
def scorer(request: pytest.FixtureRequest, home: Path) -> str:
    write(home / "mine.py", FUNCTION if request.param == "function" else COMMAND)
    return "mine.py:score" if request.param == "function" else "python3 mine.py"


class TestStudies:
    def test_it_rates_a_search_a_confirmation_and_a_comparison(self, scorer: str) -> None:
        with opened(study(scorer)) as session:
            result = session.search(n_trials=5)
            assert result.best is not None
            assert abs(result.best.alpha - BEST) <= 0.13
            assert session.confirm(result.best, n_prompts=12) is not None
            row = session.compare([0, 0.25], ["Hello"]).rows[0]
        assert row[1].reward == pytest.approx(1 + len(row[1].completion.text) % 7 / 10 - (0.25 - 0.37) ** 2)
        assert "mine.py" in result.scorer
        assert f"Rated by the scorer {result.scorer}." in result.remarks

    def test_the_same_scorer_goes_on_and_a_changed_file_is_refused_with_its_name(self, home: Path, scorer: str) -> None:
        with opened(study(scorer)) as session:
            session.search(n_trials=2)
        with opened(study(scorer)) as session:
            assert len(session.search(n_trials=3).evaluations) == 3
        file = home / "mine.py"
        file.write_text(file.read_text() + "# changed\n")
        with pytest.raises(SettingsChanged, match=r"reward.scorer: .*mine.py.* there, .*mine.py.* now"):
            opened(study(scorer))

    def test_neither_a_reward_model_nor_another_scorer_goes_on_with_it(self, home: Path, scorer: str) -> None:
        with opened(study(scorer)) as session:
            session.search(n_trials=1)
        other = es.open_session  # with a scorer object in the place of a reward model
        write(home / "other.py", FUNCTION)
        with pytest.raises(SettingsChanged, match=r"reward.scorer: .*mine.py.* there, 'other.py:score#.*' now"):
            opened(study("other.py:score"))
        rated = study(None, reward_model="my/judge")
        with pytest.raises(SettingsChanged, match=r"reward.scorer: .*mine.py.* there, '' now"):
            other(rated, "sqlite:///mine.db", model=FakeModel(), scorer=FunctionScorer("other.py:score"), quiet=True)

    def test_one_that_fails_in_mid_search_ends_it_in_one_line_and_the_same_search_goes_on(self, home: Path) -> None:
        failing = FUNCTION.replace(
            "def score(prompts, answers):", "def score(prompts, answers):\n        check(answers)"
        )
        failing += """
    def check(answers):
        import pathlib
        if any('0.5,' in a for a in answers) and not pathlib.Path('repaired').exists():
            raise RuntimeError('out of credits')
"""
        write(home / "mine.py", failing)
        first, second = FakeModel(), FakeModel()
        session = es.open_session(study("mine.py:score"), "sqlite:///mine.db", model=first, quiet=True)
        with session, pytest.raises(RewardError) as fault:
            session.search(n_trials=5)
        assert str(fault.value) == (
            "scorer mine.py:score: RuntimeError: out of credits; expected a function of (prompts, answers) that "
            "returns a number for each answer, an empty one too; see to it; what was answered is stored, the same "
            "command goes on"
        )
        (home / "repaired").touch()
        with es.open_session(study("mine.py:score"), "sqlite:///mine.db", model=second, quiet=True) as session:
            assert len(session.search(n_trials=5).evaluations) == 5
        assert any(alpha == 0.5 for alpha, _ in first.asked)
        assert not set(first.asked) & set(second.asked), "every answer was stored"

    def test_what_a_trial_call_finds_is_told_before_anything_is_written(self, home: Path) -> None:
        write(home / "mine.py", "def score(prompts, answers): return [float(a) for a in answers]\n")
        with pytest.raises(RewardError, match=r"scorer mine.py:score: ValueError: could not convert string to float"):
            opened(study("mine.py:score"))
        assert not (home / "mine.db").exists()

    def test_a_study_without_anything_that_rates_is_refused(self) -> None:
        with pytest.raises(
            StudyError, match=r"reward: nothing that rates answers; expected a reward_model in \[pair\]"
        ):
            study(None)
        with pytest.raises(StudyError, match=r"a scorer beside backend 'vllm'"):
            load_study(preset="zephyr", overrides={"reward": {"scorer": "mine:score", "backend": "vllm"}})
        for rates in ({"scorer": "mine:score"}, {"judge_url": "http://localhost:1/v1", "judge_model": "x"}):
            named = {"pair": {"reward_model": "r/m"}, "reward": rates}
            with pytest.raises(StudyError, match=r"--reward-model r/m: .* to rate the answers as well"):
                load_study(preset="zephyr", overrides=named)


class TestConsent:
    """Code that a file or a database names runs with consent alone; who types its name has given it."""

    FILE = '[pair]\nsft = "a"\naligned = "b"\n[reward]\nscorer = "mine.py:score"\n'

    def test_a_study_file_asks_for_it(self, home: Path) -> None:
        write(home / "sub" / "mine.toml", self.FILE)
        write(home / "sub" / "mine.py", FUNCTION)
        file = home / "sub" / "mine.toml"
        with pytest.raises(StudyError, match=r"a scorer that runs on this machine \(.*\); expected consent to run it"):
            load_study(file=file)
        assert load_study(file=file, trust_remote_code=True).reward.scorer == f"{home}/sub/mine.py:score"
        own = load_study(file=file, overrides={"reward": {"scorer": "typed:score"}})
        assert own.reward.scorer == "typed:score"

    def test_a_study_of_a_database_asks_for_it_and_only_looking_does_not(self, home: Path, scorer: str) -> None:
        with opened(study(scorer)) as session:
            session.search(n_trials=2)
        (home / "mine.py").write_text("open('sprung', 'w')\n")
        with pytest.raises(StudyError, match=r"study mine: a scorer that runs on this machine"):
            opened("mine")
        assert len(es.open_study("sqlite:///mine.db", "mine").evaluations) == 2
        assert not (home / "sprung").exists()
        write(home / "mine.py", FUNCTION if scorer == "mine.py:score" else COMMAND)
        with opened("mine", trust_remote_code=True) as session:
            assert len(session.search(n_trials=3).evaluations) == 3


def test_every_view_names_the_scorer_and_next_commands_give_consent(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(home / "mine.py", FUNCTION)
    with opened(study("mine.py:score")) as session:
        scorer = session.search(n_trials=5).scorer
    for command in (["show", "mine"], ["show", "mine", "--json"], ["report", "mine", "--out", "mine.html"]):
        app([*command, "--storage", "sqlite:///mine.db"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert f"Rated by the scorer {scorer}." in " ".join(shown.split())
    assert "expo-search confirm mine --storage sqlite:///mine.db --trust-remote-code" in " ".join(shown.split())
    page = (home / "mine.html").read_text()
    assert scorer in page
    assert page.count("--trust-remote-code") >= 3
    store = Store("sqlite:///mine.db", "mine", read_only=True)
    kept = store.attributes.settings
    store.close()
    assert kept is not None
    assert json.loads(json.dumps(kept.flat()))["reward.scorer"] == scorer
    assert "pair.reward_model" not in kept.flat()


SEARCH = [
    "--sft", "sft", "--aligned", "aligned", "--prompts", "prompts.jsonl", "--n-prompts", "20", "--max-tokens", "8",
    "--max-model-len", "128", "--temperature", "0", "--trials", "3", "--alpha-max", "2", "--tolerance", "0",
]  # fmt: skip
LETTERS = """
    import json, sys

    def score(prompts, answers):
        return [len(set(answer)) + len(prompt) / 100 for prompt, answer in zip(prompts, answers)]

    if __name__ == "__main__":
        for line in sys.stdin:
            row = json.loads(line)
            print(*score([row["prompt"]], [row["answer"]]))
"""


def run(folder: Path, *words: str, code: int = 0) -> str:
    return "".join(commands.run(folder, *words, code=code))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of a real engine, by a function, of which an alpha was exported."""
    folder = tmp_path_factory.mktemp("searched")
    make_pair(folder, "llama-tied", delta=0.2)
    write_prompts(folder / "prompts.jsonl", 24)
    (folder / "sub").mkdir()
    write(folder / "sub" / "mine.py", LETTERS)
    run(folder, *SEARCH, "--scorer", "sub/mine.py:score")
    alpha = es.open_study(f"sqlite:///{folder}/expo-search.db", "custom").evaluations[-1].alpha
    run(folder, "export", "custom", "--alpha", repr(alpha), "--out", "best")
    return folder


@pytest.mark.slow  # the same search as with a reward model: test_end_to_end.py; the scorer: above
def test_a_real_engines_answers_are_rated_and_an_export_names_the_scorer(searched: Path) -> None:
    store = Store(f"sqlite:///{searched}/expo-search.db", "custom", read_only=True)
    prompts = store.prompts("search")
    for answer in store.completions(1, "search", prompts):
        text = answer.completion
        assert answer.reward == pytest.approx(len(set(text.text)) + len(text.prompt.text) / 100)
    store.close()
    assert "- scorer: mine.py:score" in (searched / "best" / "README.md").read_text()
    written = json.loads((searched / "best" / "expo.json").read_text())
    assert written["settings"]["reward.scorer"].startswith("mine.py:score#")
    assert "reward_model" not in written["pair"]
    assert written["commands"]["evaluate again"] == "expo-search reproduce DIR/expo.json --trust-remote-code"
    assert "consent to run it" in run(searched, "reproduce", "best", code=2)
    planned = run(searched, *SEARCH, "--scorer", "sub/mine.py:score", "--study-name", "other", "--dry-run")
    assert "reward model" not in planned


@pytest.mark.slow  # engines start four times
def test_it_is_reproduced_and_many_engines_and_a_command_give_the_same_rewards(searched: Path) -> None:
    pytest.importorskip("ray")
    assert run(searched, "reproduce", "best", "--trust-remote-code").startswith("identical")
    run(searched, *SEARCH, "--scorer", "python3 sub/mine.py", "--study-name", "command")
    run(searched, *SEARCH, "--scorer", "sub/mine.py:score", "--study-name", "many", "--engines", "2")
    rewards = []
    for name in ("custom", "command", "many"):
        store = Store(f"sqlite:///{searched}/expo-search.db", name, read_only=True)
        rewards.append([store.rated(trial, "search") for trial in range(3)])
        store.close()
    assert rewards[0] == rewards[1] == rewards[2]
