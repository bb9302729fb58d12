"""Share sessions and weights between all pipelines of a process."""

from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class SharedCache(Generic[T]):
    """A cache of objects made from files. An object is kept as long as it is referenced
    elsewhere."""

    def __init__(self) -> None:
        self._objects: WeakValueDictionary[Hashable, T] = WeakValueDictionary()
        self._lock = Lock()

    def get(self, path: Path, *options: Hashable, make: Callable[[], T]) -> T:
        """Return the object made from this file with these options, if the file has not changed
        since.

        If there is none, make it, while other threads wait.
        """
        status = path.stat() if path.exists() else None
        version = status and (status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
        key = (str(path.resolve()), version, *options)
        with self._lock:
            found = self._objects.get(key)
            if found is None:
                found = self._objects[key] = make()
        return found
