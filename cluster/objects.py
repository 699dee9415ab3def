"""Files behind a URI: s3://bucket/runs, gs://bucket/runs, hdfs://..., file:///shared/runs, by pyarrow's file systems.

Credentials are looked for where the stores' own tools look: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, the machine's role.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow import fs

_LOCAL = fs.LocalFileSystem()


@dataclass(frozen=True, slots=True)
class Objects:
    """A folder behind a URI; it need not exist. Names are relative to it. Whatever fails raises OSError."""

    files: fs.FileSystem
    path: str
    uri: str

    @classmethod
    def at(cls, uri: str) -> "Objects":
        """Raises ValueError for what is no URI, or leads to nothing that is known here."""
        try:
            files, path = fs.FileSystem.from_uri(uri)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{uri} does not name a place for files ({error}); e.g. s3://BUCKET/FOLDER") from error
        return cls(files, path.rstrip("/"), uri.rstrip("/"))

    def __truediv__(self, name: str) -> "Objects":
        """Example: Objects.at("s3://bucket/runs?region=eu-west-1") / "a" is s3://bucket/runs/a?region=eu-west-1."""
        before, mark, query = self.uri.partition("?")
        return Objects(self.files, f"{self.path}/{name}", f"{before}/{name}{mark}{query}")

    @property
    def parent(self) -> "Objects":
        before, mark, query = self.uri.partition("?")
        return Objects(self.files, self.path.rpartition("/")[0], f"{before.rpartition('/')[0]}{mark}{query}")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def read(self, name: str) -> bytes | None:
        """All of a small file; None when there is none."""
        try:
            with self.files.open_input_stream(f"{self.path}/{name}") as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """An object store shows all of it or nothing; a file system may show a part."""
        self.files.create_dir(self.path, recursive=True)
        with self.files.open_output_stream(f"{self.path}/{name}") as stream:
            stream.write(content)

    def put(self, local: Path, name: str) -> None:
        target = PurePosixPath(self.path, name)
        self.files.create_dir(str(target.parent), recursive=True)
        fs.copy_files(str(local), str(target), _LOCAL, self.files)

    def get(self, name: str, local: Path) -> None:
        """The file, with the folders above it."""
        if ".." in PurePosixPath(name).parts:
            raise OSError(f"{self.uri} holds {name}, which leads out of its folder; nothing of it is taken")
        local.parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(f"{self.path}/{name}", str(local), self.files, _LOCAL)

    def get_all(self, local: Path) -> None:
        for name in self.names():
            self.get(name, local / name)

    def names(self) -> dict[str, int]:
        """Every file in it and in its folders: name -> bytes."""
        found = self.files.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        return {info.path.removeprefix(f"{self.path}/"): info.size for info in found if info.type == fs.FileType.File}

    def remove(self, name: str) -> None:
        """A file, if it is there."""
        with suppress(FileNotFoundError):
            self.files.delete_file(f"{self.path}/{name}")

    def remove_all(self) -> None:
        """The folder with all that is in it, if it is there."""
        with suppress(FileNotFoundError):
            self.files.delete_dir(self.path)


def why_not_writable(uri: str) -> str:
    """Why nothing can be written there; "" where it can."""
    try:
        there = Objects.at(uri)
        there.write(".probe", b"")
        there.remove(".probe")
    except (OSError, ValueError) as error:
        return str(error)
    return ""
