"""The kernels that TensorRT compiled, in their file."""

import threading

from engine.plans import edition
from engine.plans.edition import CompiledKernels


def test_the_newest_kernels_stay(tmp_path, monkeypatch):
    """Also if the garbage collector closes it in the thread that writes older ones."""
    made = iter([b"one", b"one, two", b"three"])
    kernels, save = CompiledKernels(tmp_path / "k.cache", lambda: next(made)), edition._save
    written = []

    def save_and_close(path, data):
        if not written:
            written.append(data)
            kernels.close()
        save(path, data)
        written.append(data)

    monkeypatch.setattr(edition, "_save", save_and_close)
    kernels.save()
    for thread in threading.enumerate():
        if thread.name == "viseme-kernels":
            thread.join()
    assert (tmp_path / "k.cache").read_bytes() == b"one, two"
    kernels.close()
    assert (tmp_path / "k.cache").read_bytes() == b"three"
    assert written == [b"one", b"one, two", b"one", b"one, two", b"three"]
