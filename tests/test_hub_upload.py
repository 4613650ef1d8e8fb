"""Pairs, prompts and exports by way of the Hub: the real client library against a server of our own, offline."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import commands
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import COMMIT, ask_this_hub, hub_environment, hub_server
from huggingface_hub import metadata_load
from transformers import AutoModelForCausalLM, AutoTokenizer
from twins import make_pair, make_reward_model, offline_checkpoint, read_all, write_prompts

from expo_search.cli import main as cli

IDS = ["--sft", "me/sft", "--aligned", "me/aligned", "--reward-model", "me/reward", "--prompts", "me/prompts"]
SIZES = ["--n-prompts", "6", "--max-tokens", "12", "--max-model-len", "128", "--alpha-max", "2", "--tolerance", "0"]
SEARCH = [*IDS, *SIZES, "--trials", "2"]
NOT_NEEDED = ("pytorch_model.bin", "modeling_own.py", "consolidated.safetensors", "checkpoint-9/model.safetensors")


class Hub(NamedTuple):
    """A server, its repositories' folder, what it was asked since it started, and a folder to work in."""

    address: str
    root: Path
    asked: list[str]
    work: Path

    def start(self, *arguments: str) -> str:
        """What a command says on standard error, of an interpreter that is started for it."""
        env = hub_environment(self.address, self.work / "home")
        command = [sys.executable, "-m", "expo_search", *arguments]
        found = subprocess.run(command, cwd=self.work, env=env, text=True, capture_output=True, timeout=300)
        assert found.returncode == 0, found.stderr
        return found.stderr

    def run(self, *arguments: str, offline: bool = False, home: Path | None = None) -> tuple[str, str]:
        """Output and errors of a process of its own. `home`: where the Hub's cache is, and ours."""
        there = home or self.work / "home"
        before = partial(ask_this_hub, pytest.MonkeyPatch(), self.address, there, offline=offline)
        ours = {} if home is None else {"EXPO_SEARCH_CACHE": str(home / "ours")}
        return commands.run(self.work, *arguments, before=before, environment=ours)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root, work = (tmp_path_factory.mktemp(name) for name in ("hub", "work"))
    for owner in ("me", "cut"):
        make_pair(root / "models" / owner, "llama-tied", delta=0.2)
    make_reward_model(root / "models" / "me" / "reward")
    for name in NOT_NEEDED:
        file = root / "models" / "me" / "aligned" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("not to be fetched")
    data = root / "datasets" / "me" / "prompts" / "data"
    data.mkdir(parents=True)
    write_prompts(work / "prompts.jsonl", 10)
    rows = [json.loads(line) for line in (work / "prompts.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), data / "test_gen-00000-of-00001.parquet")
    with hub_server(root) as (address, asked):
        yield Hub(address, root, asked, work)


@pytest.fixture(scope="module")
def searched(hub: Hub) -> Hub:
    assert "2 finished trials" in hub.start(*SEARCH)
    return hub


def test_a_search_fetches_what_it_needs_and_nothing_that_could_run(searched: Hub) -> None:
    fetched = {line.split("/", 5)[-1] for line in searched.asked if line.startswith("GET /me/aligned/resolve")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & set(NOT_NEEDED)
    weights = [line for line in searched.asked if line.startswith("GET /me/") and line.endswith(".safetensors")]
    of = ("aligned", "reward", "sft")
    assert sorted(weights) == [f"GET /me/{name}/resolve/{COMMIT}/model.safetensors" for name in of]


def test_what_was_fetched_is_enough_without_the_hub(searched: Hub) -> None:
    before = len(searched.asked)
    assert "2 finished trials" in searched.run(*SEARCH, offline=True)[1]
    assert len(searched.asked) == before


def test_an_export_is_uploaded_whole_and_names_its_sources(searched: Hub, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out"), "--push-to-hub", "me/new", "--private"]
    _, err = searched.run("export", "custom", "--alpha", "0.5", "--force", *out)
    assert f"uploaded: {searched.address}/me/new" in err
    there = searched.root / "models" / "me" / "new"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()
    }
    cache = searched.work / "home" / "hub"
    aligned, sft = (cache / f"models--me--{name}" / "snapshots" / COMMIT for name in ("aligned", "sft"))
    expected = read_all(offline_checkpoint(aligned, sft, 0.5, tmp_path / "offline"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_all(there).items())
    assert AutoModelForCausalLM.from_pretrained(there).config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(there).chat_template
    pair = json.loads((there / "expo.json").read_text())["pair"]
    assert pair["aligned"] == {"id": "me/aligned", "revision": COMMIT, "on_hub": True}
    assert f"me/sft@{COMMIT}" in (there / "mergekit.yaml").read_text()
    metadata = metadata_load(there / "README.md") or {}
    assert metadata["base_model"] == ["me/aligned", "me/sft"]


def fetched_weights(asked: list[str]) -> list[str]:
    """What of checkpoints' weights a Hub was asked for, but for their sizes."""
    return [line for line in asked if line.startswith("GET ") and ".safetensors" in line]


def test_a_dry_run_fetches_headers_alone_and_plans_as_with_the_weights(searched: Hub, tmp_path: Path) -> None:
    whole, _ = searched.run(*SEARCH, "--study-name", "new", "--dry-run", "--json", offline=True)
    before = len(searched.asked)
    outlined, _ = searched.run(*SEARCH, "--study-name", "new", "--dry-run", "--json", home=tmp_path)
    asked = fetched_weights(searched.asked[before:])
    assert {line.split()[1].split("/")[2] for line in asked} == {"aligned", "sft", "reward"}
    assert all(" bytes 0-" in line and int(line.rpartition("-")[2]) < 300_000 for line in asked), "of 0.7 to 1.3 MB"
    known, told = json.loads(whole), json.loads(outlined)
    size = sum((searched.root / "models" / "me" / n / "model.safetensors").stat().st_size for n in ("aligned", "sft"))
    assert told.pop("to_fetch") > size > known.pop("to_fetch") == 0
    assert told["export_bytes"] == known["export_bytes"] > 0
    assert str(told["memory"]).startswith("memory plan: ")
    assert not list((tmp_path / "hub").rglob("*.safetensors"))

    # of the study that is stored, whose weights are elsewhere
    out, err = searched.run(*SEARCH, "--trials", "3", "--dry-run", home=tmp_path)
    assert re.search(r"^to fetch: 3 MB from the Hub; \S+ GB free in its cache$", out, re.MULTILINE)
    assert "fetching" not in err


class TestRefusals:
    """Ends before anything is loaded: in this process."""

    @pytest.fixture(autouse=True)
    def _in_a_new_home(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ask_this_hub(monkeypatch, hub.address, tmp_path / "home")
        monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "ours"))
        monkeypatch.chdir(tmp_path)

    @staticmethod
    def refused(patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
        """The line that the command ends in."""
        patch.setattr(sys, "argv", ["expo-search", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        return capfd.readouterr().err.splitlines()[-1]

    def test_two_repositories_with_the_same_weights_are_seen_from_their_outlines(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        before = len(hub.asked)
        line = self.refused(monkeypatch, capfd, *IDS[:2], "--aligned", "me/sft", *IDS[4:], "--dry-run")
        assert "same weights" in line
        asked = fetched_weights(hub.asked[before:])
        assert asked
        assert all(" bytes 0-" in request for request in asked)

    def test_a_data_set_without_the_split_names_those_it_has(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        line = self.refused(monkeypatch, capfd, *IDS, "--prompts-split", "train", "--dry-run")
        assert line.endswith(
            "data set me/prompts: no split 'train'; expected one of test_gen; "
            "give --prompts-split test_gen, or a local .jsonl file: --prompts FILE"
        )

    def test_all_of_a_pair_is_found_before_the_first_weights_are_fetched(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        before = len(hub.asked)
        line = self.refused(monkeypatch, capfd, *IDS[:4], "--reward-model", "me/none", *IDS[6:])
        assert "reward model me/none, file config.json: RepositoryNotFoundError" in line
        assert len(hub.asked) > before
        assert not fetched_weights(hub.asked[before:])

    @pytest.mark.parametrize(
        ("aligned", "expected"),
        [
            ("gated/model", "gated/model: a gated repository; expected access to it; ask for access on its page"),
            ("me/none", "me/none, file config.json: RepositoryNotFoundError: "),
            ("cut/aligned", "cut/aligned, file *.safetensors: RemoteProtocolError: peer closed connection"),
        ],
    )
    def test_a_repository_that_cannot_be_fetched_is_one_line(
        self, aligned: str, expected: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        line = self.refused(monkeypatch, capfd, *IDS[:2], "--aligned", aligned, *IDS[4:])
        assert line.startswith(f"expo-search: aligned {expected}")
        assert not Path("expo-search.db").exists()
