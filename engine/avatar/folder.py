"""Files of an avatar folder: the only place where they are listed and opened."""

import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from ..reading import open_regular, read_regular

MAX_FILES = 1_000_000  # in a folder of frames, landmarks or checkpoints
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a circular link",  # others have been resolved before
}


class Folder:
    """An avatar folder, which may come from anyone: no file outside of it is read.

    Only regular files are opened, and their sizes are checked before their contents are read. The
    folder itself may be a link.

    Args:
        root: the folder.
        follow_links: whether links may lead out of the folder.

    Raises:
        InputError: it does not exist, or is not a folder.
    """

    def __init__(self, root: str | os.PathLike[str], *, follow_links: bool = False):
        self.root = Path(root)
        self._follow_links = follow_links
        try:
            is_folder = stat.S_ISDIR(os.stat(root).st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL
            raise InputError(f"{root} does not exist") from None
        except OSError as error:
            raise _unopened(self.root, error) from error
        if not is_folder:
            raise InputError(f"{root} is not a folder")
        self._given, self._real = os.path.join(self.root, ""), os.path.realpath(root)
        self._prefix = os.path.join(self._real, "")
        self.name = os.path.basename(self._real)

    def contains(self, path: Path) -> bool:
        """Return whether a path lies inside the folder after all links are resolved."""
        return os.path.join(os.path.realpath(path), "").startswith(self._prefix)

    def check(self, path: Path) -> str:
        """Check that a path is a regular file of the folder.

        Returns:
            The path with all links resolved.

        Raises:
            InputError: it does not exist, is something else, or a link leads out of the folder.
        """
        real = self._resolve(path)
        try:
            mode = os.lstat(real).st_mode
        except OSError as error:
            raise _unopened(path, error) from error
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "not a regular file")
            raise InputError(f"{path} is {kind}; expected a file")
        return real

    def open(self, path: Path, limit: int) -> BinaryIO:
        """Open a file of at most `limit` bytes for reading.

        Raises:
            InputError: as `check`; or the file is larger, or cannot be opened.
        """
        real = self.check(path)
        try:
            # It cannot be a link, because links have been resolved.
            return open_regular(real, limit, called=path, flags=os.O_NOFOLLOW)
        except OSError as error:
            raise _unopened(path, error) from error

    def read(self, path: Path, limit: int) -> bytes:
        """Read a file of at most `limit` bytes.

        Raises:
            InputError: as `open`, or the file cannot be read.
        """
        real = self.check(path)
        try:
            return read_regular(real, limit, called=path, flags=os.O_NOFOLLOW)
        except OSError as error:
            raise _unopened(path, error) from error

    def read_json(self, path: Path, limit: int) -> object:
        """Read a JSON file of at most `limit` bytes.

        Raises:
            InputError: as `read`, or the file is not JSON.
        """
        data = self.read(path, limit)
        try:
            return json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as JSON: {error}") from error

    def names(self, path: Path) -> list[str]:
        """List a folder inside the avatar folder, sorted, without names that start with a dot.

        macOS writes a "._0.png" beside every 0.png that it copies to another file system.

        Raises:
            InputError: a link leads out of the avatar folder, the folder cannot be read, or it
                has more than `MAX_FILES` files.
        """
        names = []
        try:
            with os.scandir(self._resolve(path)) as entries:
                for number, entry in enumerate(entries):
                    if number == MAX_FILES:
                        raise InputError(
                            f"{path} has more than {MAX_FILES} files; expected at most that many"
                        )
                    names.append(entry.name)
        except OSError as error:
            raise _unopened(path, error) from error
        return sorted(name for name in names if not name.startswith("."))

    def _resolve(self, path: Path) -> str:
        try:
            real = self._without_links(str(path)) or os.path.realpath(path)
        except ValueError as error:  # a NUL, a surrogate
            raise InputError(f"{path} is not the name of a file") from error
        if not self._follow_links and not os.path.join(real, "").startswith(self._prefix):
            raise InputError(
                f"{path} leads out of the avatar folder through a link; expected a file inside it "
                "(Avatar.load follows such links with follow_links=True)"
            )
        return real

    def _without_links(self, path: str) -> str | None:
        """Return what `realpath` returns; None if a part of the path below the root is a link.

        It is faster, because the root is not resolved again.
        """
        if not path.startswith(self._given):
            return None
        real = self._real
        for part in path[len(self._given) :].split(os.sep):
            real = f"{real}/{part}"
            try:
                is_link = stat.S_ISLNK(os.lstat(real).st_mode)
            except OSError:
                return None
            if is_link or part == os.pardir:
                return None
        return real


def _unopened(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be opened: {error.strerror}")
