"""Copies of a run behind a URI: what comes back was published, whatever fails, in each kind of place."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import resume
from cluster.checkpoint import Checkpoints, Damaged, verify
from cluster.mirror import Mirror, MirrorFailed, fetch
from cluster.objects import Objects, why_not_writable
from smartrag.compose import load
from smartrag.lease import Locked
from tests.fault_table import Row
from tests.object_store import BUCKET, object_store


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, object_store() as env:
        for name, value in env.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/mirror"
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{tmp_path.name}"


class Home:
    """A run's folder, published to and mirrored as a driver does."""

    def __init__(self, tmp_path: Path, place: str, keep: int = 2):
        self.folder = tmp_path / "runs" / "quickstart" / "20261126-101010-abcd"
        self.store = Checkpoints(self.folder / "checkpoints", keep)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mirror = Mirror(self.store, self.folder, place, "quickstart")
        self.uri = self.mirror.copy.uri

    def publish(self, step: int) -> None:
        with self.mirror.publish(step, {"steps_done": step}) as draft:
            for part in ("policy/model.safetensors", "learner/rank0/state.safetensors"):
                (draft / part).parent.mkdir(parents=True)
                (draft / part).write_bytes(f"{part} of step {step}".encode() * 100)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step}) + "\n")


@pytest.fixture
def home(tmp_path: Path, place: str) -> Iterator[Home]:
    made = Home(tmp_path, place)
    yield made
    made.mirror.close()


def test_a_run_comes_back_as_it_was(home: Home, place: str, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        home.publish(step)
        home.mirror.settle()
    there = (home.mirror.copy / "checkpoints").names()
    assert {name.split("/")[0] for name in there} == {"step_00000002", "step_00000003"}, "as many as are kept here"
    elsewhere = tmp_path / "another machine"
    for named in (home.uri, f"{place}/quickstart/latest", f"{home.uri}/"):
        assert fetch(named, elsewhere) == elsewhere / "quickstart" / home.folder.name
        shutil.rmtree(elsewhere / "quickstart" / home.folder.name)
    folder = fetch(home.uri, elsewhere)
    assert (elsewhere / "quickstart" / "latest").resolve() == folder
    assert (folder / "metrics.jsonl").read_bytes() == (home.folder / "metrics.jsonl").read_bytes()
    assert not (folder / "driver.json").exists()
    state = Checkpoints(folder / "checkpoints", 2).load()[1]
    assert state == {"steps_done": 3}
    for part in (home.folder / "checkpoints" / "step_00000003").rglob("*"):
        if part.is_file():
            assert (folder / part.relative_to(home.folder)).read_bytes() == part.read_bytes()
    assert fetch(home.uri, elsewhere) == folder, "what is here already is left as it is"
    earlier = fetch(f"{home.uri}/checkpoints/step_00000002", tmp_path / "a third")
    assert verify(earlier) == {"steps_done": 2}


def test_a_step_that_is_published_anew_replaces_its_copy(home: Home, tmp_path: Path) -> None:
    """A run that went on from before it."""
    home.publish(1)
    home.mirror.settle()
    with home.mirror.publish(1, {"steps_done": 1, "life": 2}) as draft:
        (draft / "policy").write_text("another")
    home.mirror.settle()
    assert Checkpoints(fetch(home.uri, tmp_path / "b") / "checkpoints", 2).load()[1]["life"] == 2


@pytest.mark.fault("T7", "the place of the copies fails, after each operation of a copy")
def test_whatever_fails_what_comes_back_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """Of a copy one operation is done, two, three, ...; that after it mends all."""
    operations = _failing(monkeypatch)
    failed, done = True, 0
    while failed:
        here = tmp_path / str(done)
        home = Home(here, f"file://{here}/mirror", keep=1)
        home.publish(2)
        home.mirror.settle()
        operations.left = done
        home.publish(3)
        try:
            home.mirror.settle()
            failed = False
        except MirrorFailed:
            pass
        operations.left = float("inf")
        came = _steps(home, here / "b")
        assert came in (({2}, {3}) if failed else ({3},))
        home.publish(4)
        home.mirror.settle()
        home.mirror.close()
        assert _steps(home, here / "c") == {4}
        row.trial()
        done += 1
    assert done >= 8


def _steps(home: Home, runs: Path) -> set[int]:
    """Of what is fetched; every checkpoint in it is what was written."""
    folder = fetch(home.uri, runs) / "checkpoints"
    return {verify(path)["steps_done"] for path in folder.iterdir()}


def test_a_copy_that_fails_is_told_of_and_made_later(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "smartrag"):
        patch.setattr(Objects, "put", _refuse)
        home.publish(1)
        home.publish(2)
        with pytest.raises(MirrorFailed, match="the run is whole in"):
            home.mirror.settle()
    assert f"not copied to {home.uri} (no space behind it); tried again after the next checkpoint" in caplog.text
    home.publish(3)
    home.mirror.settle()
    assert _steps(home, tmp_path / "b") == {3}


def test_who_goes_on_from_the_copy_has_the_run(home: Home, place: str, tmp_path: Path) -> None:
    home.publish(1)
    home.mirror.settle()
    folder = fetch(home.uri, tmp_path / "b")
    other = Mirror(Checkpoints(folder / "checkpoints", 2), folder, place, "quickstart")
    home.publish(2)
    with pytest.raises(Locked, match="has gone on with this run from its copy"):
        home.mirror.settle()
    with pytest.raises(Locked), home.mirror.publish(3, {}):
        pass
    assert _steps(home, tmp_path / "c") == {1}, "nothing of the first driver's came there since"
    other.close()


@pytest.mark.fault("T8", "a copy is damaged")
def test_a_damaged_copy_is_passed_over_and_named(home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        home.publish(step)
        home.mirror.settle()
    copies = home.mirror.copy / "checkpoints"
    whole = {name: copies.read(name) or b"" for name in copies.names() if name.startswith("step_00000002")}
    for i, (name, content) in enumerate(sorted(whole.items())):
        copies.write(name, bytes([content[0] ^ 1]) + content[1:])
        with caplog.at_level(logging.WARNING, "smartrag"):
            assert _steps(home, tmp_path / f"b{i}") == {1}
        assert f"{name.partition('/')[2]}" in caplog.text
        copies.write(name, content)
        caplog.clear()
    for name in copies.names():
        copies.write(name, b"{}")
    with pytest.raises(Damaged, match=r"manifest\.json is damaged"):
        fetch(home.uri, tmp_path / "c")
    assert not list((tmp_path / "c" / "quickstart").iterdir()), "nothing half-fetched is left"


def test_an_older_folder_of_the_run_is_in_the_way(home: Home, tmp_path: Path) -> None:
    home.publish(1)
    home.mirror.settle()
    folder = fetch(home.uri, tmp_path / "b")
    home.publish(2)
    home.mirror.settle()
    with pytest.raises(ValueError, match=r"is here without step_00000002, which its copy has; move it away"):
        fetch(home.uri, tmp_path / "b")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000001"]


def test_what_is_not_there(place: str, tmp_path: Path, home: Home) -> None:
    for named in (f"{place}/quickstart/no-such-run", home.uri, f"{place}/other/latest"):
        with pytest.raises(FileNotFoundError):
            fetch(named, tmp_path / "b")
    home.publish(1)
    home.mirror.settle()
    with pytest.raises(FileNotFoundError, match="named step_00000007"):
        fetch(f"{home.uri}/checkpoints/step_00000007", tmp_path / "b")


def test_auto_goes_on_with_what_there_is(home: Home, place: str, tmp_path: Path) -> None:
    """Here, else among the copies, else nothing."""

    def auto(runs: str, name: str = "quickstart") -> str | None:
        given = (f"runs={tmp_path / runs}", f"name={name}", f"train.mirror={place}", "resume=auto")
        return resume.at_hand(load(["+experiment=quickstart", *given])).resume

    assert auto("runs") is None
    assert auto("b") is None
    home.publish(1)
    home.mirror.settle()
    assert auto("runs", "another") is None
    fetched = tmp_path / "b" / "quickstart" / home.folder.name
    assert auto("b") == str(fetched)
    home.publish(2)
    home.mirror.settle()
    assert auto("b") == str(fetched.parent / "latest"), "what is here comes first"
    assert {path.name for path in (fetched / "checkpoints").iterdir()} == {"step_00000001"}


def test_a_place_that_leads_nowhere(tmp_path: Path) -> None:
    for uri in ("s3//bucket", "ftp://host/runs", "runs"):
        with pytest.raises(ValueError, match="does not name a place for files"):
            Home(tmp_path, uri)
        assert "does not name a place for files" in why_not_writable(uri)
    assert why_not_writable(f"file://{tmp_path}/mirror") == ""
    assert list((tmp_path / "mirror").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(MirrorFailed, match="cannot be written"):
        Home(tmp_path, f"file://{tmp_path}/file/below")


def test_a_name_that_leads_out_of_its_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="leads out of its folder"):
        Objects.at(f"file://{tmp_path}").get("a/../../b", tmp_path / "c")


class _Operations:
    """`left` more of what is done behind URIs are done; then everything fails."""

    left: float = float("inf")

    def counted(self, does: Callable) -> Callable:
        def one(objects: Objects, *given: object) -> object:
            if self.left <= 0:
                raise OSError("the place is gone")
            self.left -= 1
            return does(objects, *given)

        return one


def _failing(monkeypatch: pytest.MonkeyPatch) -> _Operations:
    operations = _Operations()
    for name in ("read", "write", "put", "names", "remove", "remove_all"):
        monkeypatch.setattr(Objects, name, operations.counted(getattr(Objects, name)))
    return operations


def _refuse(*_: object) -> None:
    raise OSError("no space behind it")
