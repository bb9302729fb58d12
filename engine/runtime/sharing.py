"""Sessions and weights that all pipelines of a process share."""

from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class SharedCache(Generic[T]):
    """Objects made from files. Each is kept as long as somebody uses it."""

    def __init__(self) -> None:
        self._objects: WeakValueDictionary[Hashable, T] = WeakValueDictionary()
        self._lock = Lock()

    def get(self, path: Path, *options: Hashable, make: Callable[[], T]) -> T:
        """Return the object that was made from this file, unchanged since, with these options.

        Without one it is made; others wait meanwhile.
        """
        status = path.stat() if path.exists() else None
        version = status and (status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
        key = (str(path.resolve()), version, *options)
        with self._lock:
            found = self._objects.get(key)
            if found is None:
                found = self._objects[key] = make()
        return found
