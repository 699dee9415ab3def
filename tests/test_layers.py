"""The door between the two storeys: the science imports without the machines."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cluster.replica", ("torch", "transformers", "ray.rllib", "ray.tune", "vllm")),
        ("cluster.worker", ("ray.rllib", "ray.tune", "deepspeed", "pyserini")),
        ("cluster.rank", ("ray.rllib", "ray.tune", "vllm", "pyserini")),
    ],
)
def test_an_actor_waits_for_no_import_that_it_does_not_use(module: str, absent: tuple[str, ...]) -> None:
    """Its process begins with an import of the file that its class is in."""
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport {module}"
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


# What runs code that stands in data, and where it may be called all the same.
RUNS_DATA = {
    *("eval", "exec", "compile", "__import__", "os.system"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load"),
    *("joblib.load", "marshal.loads", "shelve.open", "torch.load", "torch.jit.load", "torch.hub.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("pandas.read_pickle", "pd.read_pickle", "hydra.utils.instantiate", "instantiate", "hydra.utils.call"),
    *("get_class", "get_method", "get_object", "runpy.run_path", "runpy.run_module"),
}
UNPICKLES = {"load_checkpoint": "cluster/zero.py"}  # DeepSpeed's own, of a checkpoint whose every file was hashed


def _calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """(line, dotted name with imports spelled out, call) of every call in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spelled = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            spelled |= {name.asname: name.name for name in node.names if name.asname}
        elif isinstance(node, ast.ImportFrom):
            spelled |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, rest = ast.unparse(node.func).partition(".")
            yield node.lineno, spelled.get(head, head) + dot + rest, node


def test_nothing_read_is_ever_run() -> None:
    sources = [path for folder in ("smartrag", "cluster", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
    found, unpickles, trusting = [], {}, []
    for path in sources:
        name = path.relative_to(ROOT).as_posix()
        for line, called, call in _calls(path):
            if called in RUNS_DATA:
                found.append(f"{name}:{line} {called}")
            if (last := called.rpartition(".")[2]) in UNPICKLES:
                unpickles[last] = name
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if words.get("trust_remote_code", "False") != "False" or words.get("weights_only") == "False":
                trusting.append(f"{name}:{line}")
    assert found == []
    assert trusting == []
    assert unpickles == UNPICKLES


def test_the_scan_sees_through_other_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from pickle import loads as x\nimport torch as t\nx(b'')\nt.load('f')\neval('1')\n")
    assert {called for _, called, _ in _calls(tmp_path / "a.py")} == {"pickle.loads", "torch.load", "eval"}
