"""Facts about a machine, found on real folders, sockets and files, and with an nvidia-smi that is planted."""

import socket
from pathlib import Path

import pytest

from cluster import machine


def test_a_disk_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    found = machine.disk(tmp_path / "not" / "yet")
    assert (found.path, found.error) == (tmp_path / "not" / "yet", "")
    assert found.free > 0
    assert found.kind
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert machine.disk(tmp_path / "file" / "runs").error == f"{tmp_path / 'file'} is not a folder"
    assert machine.disk(Path("/proc/runs")).error.startswith("files cannot be written, renamed and linked there (")


def test_taken_ports_and_loopback() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert machine.taken([port]) == [port]
    assert machine.taken([port]) == []
    assert machine.loopback() == ""
    assert machine.unresolved("localhost") == ""
    assert machine.unresolved("no.such.host.invalid")


def test_the_token_is_looked_at_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "a" / "token"))
    assert not machine.token().there
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "a" / "token").write_text("secret")
    (tmp_path / "a" / "token").chmod(0o640)
    found = machine.token()
    assert (found.mode, found.there, found.bits, found.shielded) == ("token", True, 0o640, True)
    assert "secret" not in repr(found)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.token().file == tmp_path / ".ray" / "auth_token"


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus(5.0, ask_torch=True).names == ()
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'NVIDIA A100, 81920, 550.54'; echo 'NVIDIA A100, 40960, 550.54'\n")
    listing.chmod(0o755)
    found = machine.gpus(5.0, ask_torch=False)
    assert (found.names, found.memory, found.driver) == (("NVIDIA A100",) * 2, 40960 << 20, "550.54")
    monkeypatch.setattr(machine, "_ASK_TORCH", "print('13.0|2')")
    assert (machine.gpus(20.0, ask_torch=True).torch_build, machine.gpus(20.0, ask_torch=True).torch_sees) == (
        "13.0",
        2,
    )
    monkeypatch.setattr(machine, "_ASK_TORCH", "raise ImportError('no torch')")
    assert machine.gpus(20.0, ask_torch=True).error == "ImportError: no torch"
