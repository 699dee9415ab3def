"""The door between the two storeys: the science imports without the machines."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCKED = ("ray", "vllm", "deepspeed", "pyserini", "jnius", "cluster")


def test_every_module_of_smartrag_imports_without_the_machines() -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "smartrag").rglob("*.py"))]
    modules = [".".join(path.parts) for path in paths if path.name != "__init__"]
    assert len(modules) > 50
    code = f"import sys, importlib\nfor name in {BLOCKED}: sys.modules[name] = None\n"
    code += f"for name in {modules}: importlib.import_module(name)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_remote_calls_stay_in_cluster() -> None:
    for folder in ("smartrag", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert ".remote(" not in text, path
            assert "ray.get(" not in text, path


def test_nothing_names_a_machine_or_grows_out_of_hand() -> None:
    for path in [path for folder in ("smartrag", "cluster", "launch") for path in (ROOT / folder).rglob("*.py")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= (60 if path.parent.name == "launch" else 320), f"{path} has {len(lines)} lines"
        assert lines[0].startswith(('"""', "#!")), f"{path} opens without saying what it is"
