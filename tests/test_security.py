"""What may not happen whatever the input is: pickles loaded, code run unasked, paths that escape, secrets shown."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import PASSWORD, PostgresServer
from twins import make_pair, make_reward_model, make_tokenizer, write_prompts

import expo_search
from expo_search.checkpoint.folder import open_checkpoint
from expo_search.checkpoint.remote_code import is_commit
from expo_search.cli import main as cli
from expo_search.config.presets import load_study
from expo_search.config.spec import PairSpec, PartsSpec, RewardSpec
from expo_search.errors import ExpoError, PairError, RewardError, StudyError
from expo_search.evaluation.reward_model import SequenceRewardModel
from expo_search.inputs.chat_template import load_tokenizer
from expo_search.inputs.pair import resolve_pair
from expo_search.inputs.prompts import load_prompts
from expo_search.store.study_store import Store
from expo_search.text import clean, one_line

PACKAGE = Path(expo_search.__file__).parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = sorted(PACKAGE.rglob("*.py"))


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name of what is called, call) of a source file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(file: Path) -> set[str]:
    """Top-level names of the modules that a source file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


class Trap:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


class TestPickles:
    def test_nothing_in_the_package_can_unpickle(self) -> None:
        for file in FILES:
            assert imports(file).isdisjoint({"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"})
            for name, call in calls(file):
                assert name not in {"torch.load", "pandas.read_pickle"}, file
                assert not any(keyword.arg == "allow_pickle" for keyword in call.keywords), file

    def test_every_model_is_loaded_from_safetensors_or_gguf(self) -> None:
        for file in FILES:
            for name, call in calls(file):
                if not name.endswith(".from_pretrained") or "Model" not in name:
                    continue
                options = {k.arg: ast.unparse(k.value) for k in call.keywords}
                gguf = file.name == "build.py" and options.get(None) == "source"
                assert gguf or options.get("use_safetensors") == "True", (file, ast.unparse(call))

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
    def test_a_checkpoint_of_pickles_is_refused_with_the_conversion_and_not_touched(
        self, tmp_path: Path, name: str
    ) -> None:
        folder, sprung = make_reward_model(tmp_path / "reward"), tmp_path / "sprung"
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
        with pytest.raises(PairError, match="safe_serialization=True") as fault:
            open_checkpoint(folder, role="reward model")
        assert fault.value.found == f"no safetensors ({name})"
        with pytest.raises(RewardError, match="a sequence classifier in safetensors"):
            SequenceRewardModel(folder, RewardSpec())
        assert not sprung.exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of owner/name in a Hub cache, offline; `main` is COMMIT."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def name_code(folder: Path, reference: str, file: str = "config.json", key: str = "AutoConfig") -> None:
    (folder / file).write_text(json.dumps({"auto_map": {key: reference}}))


class TestRemoteCode:
    def resolve(self, tmp_path: Path, *, trust: bool = True, **given: str) -> Path:
        here = {name: str(tmp_path) for name in ("aligned", "sft", "reward_model")}
        spec = PairSpec(**here | given)
        return resolve_pair(spec, trust_remote_code=trust, say=lambda _: None).aligned.path

    @pytest.mark.parametrize("revision", [None, "main"])
    @pytest.mark.parametrize(
        ("role", "key", "pin"),
        [("aligned", "aligned", "aligned_revision"), ("reward model", "reward_model", "reward_revision")],
    )
    def test_code_on_the_hub_needs_a_pinned_revision_and_the_line_that_pins_it_is_said(
        self, tmp_path: Path, hub: Path, role: str, key: str, pin: str, revision: str | None
    ) -> None:
        name_code(hub, "configuration.Config")
        given: dict[str, Any] = {key: "owner/name"} | ({pin: revision} if revision else {})
        with pytest.raises(PairError) as fault:
            self.resolve(tmp_path, **given)
        assert str(fault.value) == (
            f"{role} owner/name: code (configuration.Config) at a revision that can change; expected a pinned revision:"
            " with --trust-remote-code the code runs on this machine; "
            f'read the code, then set {pin} = "{COMMIT}" in the [pair] table of a study file'
        )

    def test_pinned_code_and_checkpoints_without_code_are_taken(self, tmp_path: Path, hub: Path) -> None:
        assert self.resolve(tmp_path, aligned="owner/name") == hub
        name_code(hub, "configuration.Config")
        assert self.resolve(tmp_path, aligned="owner/name", aligned_revision=COMMIT) == hub

    def test_code_of_the_sft_checkpoint_never_runs_and_needs_no_pin(self, tmp_path: Path, hub: Path) -> None:
        name_code(hub, "configuration.Config")
        self.resolve(tmp_path, sft="owner/name")

    @pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
    @pytest.mark.parametrize("pinned", [True, False])
    def test_code_of_another_repository_is_refused_wherever_the_checkpoint_is(
        self, tmp_path: Path, hub: Path, file: str, pinned: bool
    ) -> None:
        name_code(hub, "someone/else--configuration.Config", file)
        pin: dict[str, Any] = {"aligned": "owner/name", "aligned_revision": COMMIT}
        given = pin if pinned else {"aligned": str(hub)}
        with pytest.raises(PairError, match=r"code of another repository \(someone/else--configuration.Config\)"):
            self.resolve(tmp_path, **given)

    def test_local_code_is_the_users_own(self, tmp_path: Path) -> None:
        name_code(tmp_path, "configuration.Config")
        assert self.resolve(tmp_path) == tmp_path

    def test_without_consent_no_code_is_asked_about_or_run(self, tmp_path: Path, hub: Path) -> None:
        name_code(hub, "configuration.Config")
        assert self.resolve(tmp_path, trust=False, aligned="owner/name") == hub
        sprung, folder = tmp_path / "sprung", tmp_path / "local"
        make_tokenizer().save_pretrained(folder)
        (folder / "configuration.py").write_text(f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n")
        (folder / "config.json").write_text(
            json.dumps({"model_type": "new", "auto_map": {"AutoConfig": "configuration.Config"}})
        )
        with pytest.raises(RewardError, match=r"contains custom code.*without remote code.*--trust-remote-code"):
            SequenceRewardModel(folder, RewardSpec())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"auto_map": {"AutoTokenizer": ["configuration.Tokenizer", None]}, "tokenizer_class": "New"})
        )
        (folder / "tokenizer.json").unlink()
        with pytest.raises(PairError, match="without remote code"):
            load_tokenizer(str(folder), trust_remote_code=False)
        assert not sprung.exists()

    @pytest.mark.parametrize(
        "revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper(), COMMIT + "\n", COMMIT + "0"]
    )
    def test_only_a_whole_commit_hash_is_a_pinned_revision(self, revision: str | None) -> None:
        assert not is_commit(revision)
        assert is_commit(COMMIT)


ESCAPES = ["../x", "..", "/etc/passwd", "a/../../x", "a/..", "./a", "~/x", "a\\..\\x", "a\0", "a\n", "C:/x", "", "a//b"]


class TestPaths:
    @pytest.mark.parametrize("path", ESCAPES)
    @pytest.mark.parametrize("key", ["package", "version", "file", "aligned_adapter", "reward_adapter", "sha256"])
    def test_parts_of_a_study_file_cannot_name_a_place_outside_their_folder(self, key: str, path: str) -> None:
        parts = {
            "package": "p", "version": "1.0", "file": "p/model.gguf", "sha256": "0" * 64,
            "aligned_adapter": "demo/aligned", "reward_adapter": "demo/reward",
        }  # fmt: skip
        PartsSpec(**parts)
        with pytest.raises(StudyError, match=f"pair.parts.{key}"):
            load_study(overrides={"pair": {"parts": parts | {key: path}}})

    @pytest.mark.parametrize("name", [*ESCAPES, "a/b", "-rf", ".hidden"])
    def test_a_studys_name_is_no_path(self, name: str) -> None:
        with pytest.raises(StudyError, match="name"):
            load_study(overrides={"pair": {"aligned": "a/b", "sft": "a/b", "reward_model": "a/b"}}, name=name)

    @pytest.mark.parametrize("id", ["owner/..", "../name", "owner/na\0me", "owner/a..b", "owner/a--b", "owner/%2e%2e"])
    def test_a_hub_name_cannot_leave_the_hubs_cache(self, tmp_path: Path, id: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(PairError):
            resolve_pair(
                PairSpec(aligned=id, sft=str(tmp_path), reward_model=str(tmp_path)),
                trust_remote_code=False,
                say=lambda _: None,
            )
        assert sorted(tmp_path.rglob("*")) == before

    def test_an_index_cannot_name_a_file_outside_its_folder(self, tmp_path: Path) -> None:
        aligned, _ = make_pair(tmp_path, "llama-tied")
        (aligned / "model.safetensors").rename(tmp_path / "model.safetensors")
        (aligned / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}})
        )
        with pytest.raises(PairError, match="files not in the folder"):
            open_checkpoint(aligned, role="aligned")

    def test_a_prompts_id_is_kept_as_text_and_names_no_file(self, tmp_path: Path) -> None:
        file = tmp_path / "prompts.jsonl"
        file.write_text(json.dumps({"prompt": "hi", "prompt_id": "../../escape"}))
        prompts = load_prompts(str(file), "", 1)
        store = Store(f"sqlite:///{tmp_path / 'ids.db'}", "s")
        store.put_prompts("search", prompts)
        assert store.prompts("search")[0].id == "../../escape"
        assert not list(tmp_path.parent.rglob("escape*"))


CONTROLS = "\x1b[31mred\x1b]0;title\x07\x9b2J\x08\r\x7f\u202e\u2066\u2028end"


class TestTerminal:
    def test_control_sequences_are_taken_out_and_it_is_seen_that_something_was_there(self) -> None:
        found = clean(CONTROLS)
        assert found.isprintable()
        assert found.replace("\ufffd", "") == "[31mred]0;title2Jend"

    def test_what_scripts_and_emoji_are_written_with_stays(self) -> None:
        for text in ("مرحبا", "ไทย\u200bไทย", "שלום", "می\u200cخواهم", "👩\u200d👧", "e\u0301", "a\n\tb", "你好"):
            assert clean(text) == text

    def test_an_error_is_one_line_whatever_it_names(self) -> None:
        assert one_line("a\n\nb\r\n c\x1b") == "a b c\ufffd"

    def test_a_file_name_cannot_write_to_the_terminal(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["expo-search", "--study", "a\x1b[2J\n\x07b.toml"])
        with pytest.raises(SystemExit):
            cli.main()
        err = capfd.readouterr().err
        assert (
            err.strip()
            == "expo-search: a\ufffd[2J \ufffdb.toml: no such file; expected a study file in TOML; check the path"
        )


class TestSql:
    def test_no_driver_is_used_beside_sqlalchemy(self) -> None:
        for file in FILES:
            assert imports(file).isdisjoint({"sqlite3", "psycopg", "psycopg2", "pymysql", "MySQLdb", "asyncpg"}), file

    def test_statements_are_built_by_sqlalchemy_or_written_out_whole(self) -> None:
        for file in FILES:
            for name, call in calls(file):
                is_statement = name.split(".")[-1] in {"text", "exec_driver_sql"}
                if is_statement and call.args and name not in {"Text", "plotext.text"}:
                    assert isinstance(call.args[0], ast.Constant), (file, ast.unparse(call))

    def test_no_statement_names_a_table_of_optunas(self) -> None:
        """Its storage reads and writes them, whatever their columns are in another version."""
        statement = re.compile(
            r"\b(select|insert|update|delete|from|into|join)\b.*\b(studies|trials|(study|trial)_\w+)\b", re.I
        )
        for file in FILES:
            for name, call in calls(file):
                texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                if name.split(".")[-1] in {"text", "exec_driver_sql"}:
                    assert not [text for text in texts if statement.search(text)], file


SECRET = "hunter2"


@pytest.fixture(params=["no driver", "wrong password", "password in the query", "no database", "no server"])
def refused(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A database that cannot be used, whose URL holds a password, and what is said of it."""
    if request.param == "no driver":
        return f"postgresql+nosuchdriver://me:{SECRET}@localhost/db", "me:***@localhost"
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.over_tcp(server.database(), password=SECRET)
    if request.param == "wrong password":
        return url, "password authentication failed for user"
    if request.param == "password in the query":
        return f"{url.replace(f':{SECRET}@', '@')}?password={SECRET}", "password=***: connection failed"
    if request.param == "no server":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return server.over_tcp(url, password=SECRET, port=free.getsockname()[1]), "Connection refused"
    gone = sa.make_url(server.over_tcp(url)).set(database="missing")
    return gone.render_as_string(hide_password=False), 'database "missing" does not exist'


class TestSecrets:
    def test_a_refused_search_shows_no_password_of_its_database(
        self,
        tiny_home: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        refused: tuple[str, str],
    ) -> None:
        url, said = refused
        monkeypatch.chdir(tmp_path)
        shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
        write_prompts(tmp_path / "prompts.jsonl", 8)
        capfd.readouterr()
        pair = ["--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl"]
        for command in (
            [*pair, "--max-tokens", "8"],
            ["show", "s"],
            ["export", "s", "--out", "out"],
            ["confirm", "s"],
            ["dashboard", "s"],
            ["report", "s", "--out", "s.html"],
        ):
            monkeypatch.setattr(sys, "argv", ["expo-search", *command, "--storage", url])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            fault, captured = stop.value.__context__, capfd.readouterr()
            assert stop.value.code == 2
            assert isinstance(fault, ExpoError)
            assert said in captured.err
            assert len(captured.err.splitlines()) == 1
            log = tmp_path / "expo-search.log"
            everything = captured.err + captured.out + (log.read_text() if log.exists() else "")
            assert SECRET not in everything
            assert PASSWORD not in everything
