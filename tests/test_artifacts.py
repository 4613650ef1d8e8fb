"""Where artifacts go: a folder, or a bucket, which a small server on this machine stands for; boto3 is real."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, object_store
from optuna.artifacts import get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from test_dashboard_server import get, served
from test_dashboard_updates import Run

from expo_search.errors import StudyError
from expo_search.results import artifacts
from expo_search.results.artifacts import check_place, given_place, open_artifacts
from expo_search.store.attributes import StudyAttributes


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    pytest.importorskip("boto3")
    with object_store() as (address, objects):
        settings = {
            "ENDPOINT_URL_S3": address,
            "ACCESS_KEY_ID": "nobody",
            "SECRET_ACCESS_KEY": "hunter2",
            "DEFAULT_REGION": "eu-west-1",
            "MAX_ATTEMPTS": "1",
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield objects


class TestBucket:
    PLACE = f"s3://{BUCKET}/some/prefix"

    def test_a_place_is_tried_before_a_search_and_nothing_is_left_there(self, bucket: dict[str, bytes]) -> None:
        check_place(given_place(self.PLACE))
        assert bucket == {}
        with pytest.raises(StudyError) as fault:
            check_place("s3://another-bucket")
        assert fault.value.where == "--artifacts s3://another-bucket"
        assert "NoSuchBucket" in fault.value.found
        assert "hunter2" not in str(fault.value)
        assert "\n" not in str(fault.value)

    @pytest.mark.parametrize("place", [PLACE, f"s3://{BUCKET}", f"s3://{BUCKET}/"])
    def test_what_is_written_is_read_and_removed_below_the_prefix(self, bucket: dict[str, bytes], place: str) -> None:
        store = open_artifacts([given_place(place)])
        store.write("an-id", io.BytesIO(b"content"))
        prefix = "some/prefix/" if place == self.PLACE else ""
        assert bucket == {f"/{BUCKET}/{prefix}an-id": b"content"}
        assert store.open_reader("an-id").read() == b"content"
        with pytest.raises(ArtifactNotFound):
            store.open_reader("another")
        store.remove("an-id")
        assert bucket == {}

    def test_a_trials_files_are_in_the_bucket_and_served_by_the_dashboard(
        self, bucket: dict[str, bytes], tmp_path: Path
    ) -> None:
        run = Run(tmp_path, place=self.PLACE)
        store = run.go(2)
        store.keep(StudyAttributes(artifacts=self.PLACE))
        assert run.said == []
        assert len(bucket) == 4
        assert not [*tmp_path.glob("*.artifacts")]
        with served(store.url, "s") as address:
            root, study_id = address.split("/dashboard")[0], store.study._study_id
            trial = json.loads(get(f"{root}/api/studies/{study_id}"))["trials"][1]
            (table,) = [a for a in trial["artifacts"] if a["filename"] == "samples.jsonl"]
            rows = get(f"{root}/artifacts/{study_id}/{trial['trial_id']}/{table['artifact_id']}")
        assert len(rows.splitlines()) == 6

    def test_a_bucket_that_is_gone_costs_no_trial(self, bucket: dict[str, bytes], tmp_path: Path) -> None:
        run = Run(tmp_path, place="s3://another-bucket")
        run.go(2)
        (said,) = run.said
        assert said.startswith("the dashboard is not kept up to date (")
        assert bucket == {}


@pytest.mark.parametrize("place", ["s3://", "s3://Not_A_Bucket/x", "gs://bucket/x", "https://host/x"])
def test_a_place_that_is_neither_a_folder_nor_a_bucket_is_refused(place: str) -> None:
    with pytest.raises(StudyError, match="neither a folder nor a bucket; expected a path, or s3://bucket/prefix"):
        given_place(place)


def test_a_bucket_without_boto3_is_refused_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match="boto3 is not installed") as fault:
        given_place("s3://bucket")
    assert fault.value.do == 'pip install "expo-search[s3]"'


def test_a_folder_is_kept_by_its_whole_path_and_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = given_place("new/folder")
    assert place == str(tmp_path / "new" / "folder")
    check_place(place)
    assert [*Path(place).iterdir()] == []
    Path("file").touch()
    with pytest.raises(StudyError, match=r"--artifacts .*/file: "):
        check_place(given_place("file"))


def test_artifacts_of_a_database_whose_studies_have_several_places_are_all_served(tmp_path: Path) -> None:
    one, two = (Run(tmp_path, place=str(tmp_path / name), study=name) for name in ("one", "two"))
    stores = [run.go(1) for run in (one, two)]
    for run, store in zip((one, two), stores, strict=True):
        store.keep(StudyAttributes(artifacts=run.place))
    with served(stores[0].url, None) as address:
        root = address.split("/dashboard")[0]
        for store in stores:
            (trial,) = store.study.get_trials()
            for meta in get_all_artifact_meta(trial, storage=store.storage):
                assert get(f"{root}/artifacts/{store.study._study_id}/{trial._trial_id}/{meta.artifact_id}")
