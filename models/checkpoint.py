"""Read, check and write checkpoint files."""

import functools
import os
import pickle
import secrets
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from models.audio_encoder import AudioEncoder
from models.generator import Generator
from models.safe_pickle import MAX_BYTES, MAX_ENTRIES, TooLarge, read_pickle, refused_global

_NETWORKS: dict[str, type[nn.Module]] = {"generator": Generator, "audio_encoder": AudioEncoder}
_WORDS = {"generator": "a generator", "audio_encoder": "an audio encoder"}

# Older PyTorch did not write these counters; inference never reads them.
_COUNTER = "num_batches_tracked"

MAX_NAME = 300  # characters in the name of a weight
_NO_MEMORY = "there is too little memory to read it"
MAX_HEADER = 16_000_000  # bytes, of a safetensors file: names, shapes and offsets


class CheckpointError(ValueError):
    """A file cannot be used as a checkpoint of the network. The message is one line with the file's
    name. Characters that cannot be printed, such as a newline in a weight's name, are escaped."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class PickleError(CheckpointError):
    """The file is a pickle."""


def load(
    path: str | os.PathLike[str], kind: str | None = None, *, pickles: bool = True
) -> nn.Module:
    """Load a network from a checkpoint.

    The format is recognized by the file's content, not by its name. Pickles are read with
    `weights_only=True`, so that no code in the file is run. Values that trainers keep beside the
    weights (NumPy scalars and arrays, paths, dates, namespaces, defaultdicts) are skipped.

    A file may come from anyone: it has at most 2 GiB, also uncompressed, 100 000 entries, and
    300 characters in the name of a weight. A pickle may still be made to take any time to read: a
    tuple that holds itself twice, many times over, is short, but not its hash. So a server reads
    pickles in a process of their own (`python -m models`).

    Args:
        path: a .pth or .pt file (a state dict, or a training checkpoint with one inside, with or
            without the prefixes of wrappers) or a .safetensors file, in any float dtype.
        kind: "generator" or "audio_encoder"; None to recognize it by the names of the weights.
        pickles: whether to read .pth and .pt files; if not, they raise `PickleError`.

    Returns:
        A `Generator` or `AudioEncoder` in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: the file is missing, is not a checkpoint, exceeds a limit, has another
            network, or has weights that are not finite or not floating point.
        ValueError: `kind` is unknown.
    """
    if kind is not None and kind not in _NETWORKS:
        raise ValueError(f"kind is {kind!r}; expected one of: {', '.join(_NETWORKS)}, None")
    path = Path(path)
    content = _read(path, pickles)
    candidates = [_without_prefix(tensors) for tensors in _state_dicts(path, content)]
    if not candidates:
        raise CheckpointError(f"{path}: has no weights{_guess_without_weights(content)}")

    kinds = list(_NETWORKS) if kind is None else [kind]
    scores = {
        (name, i): len(_expected(name).keys() & tensors.keys())
        for name in kinds
        for i, tensors in enumerate(candidates)
    }
    if kind is None:
        complete = {
            name
            for (name, i), score in scores.items()
            if score >= _required(name) and not any(_misfit(name, candidates[i]))
        }
        if len(complete) > 1:
            raise CheckpointError(f"{path}: has both networks; give the kind of the one to load")
    # Of equal scores, max() returns the first in the file, where `model` comes before `ema`.
    found, index = max(scores, key=scores.__getitem__)
    tensors = candidates[index]
    _refuse_dtypes(path, found, tensors)
    misfit = _misfit(found, tensors)
    if any(misfit):
        wanted = "a network of Viseme" if kind is None else _WORDS[kind]
        raise CheckpointError(
            f"{path}: not {wanted}: {_guess(tensors, kind)} ({_describe(misfit)})"
        )
    return _build(path, found, tensors)


def save(module: nn.Module, path: str | os.PathLike[str], *, precision: str = "fp32") -> None:
    """Write a network's weights as .safetensors, atomically.

    Args:
        module: a `Generator` or `AudioEncoder`, on any device.
        path: the file to write.
        precision: "fp32" or "fp16".

    Raises:
        ValueError: a weight is not finite in that precision, or the precision is unknown.
        OSError: the file cannot be written.
    """
    if precision not in ("fp32", "fp16"):
        raise ValueError(f"precision is {precision!r}; expected fp32 or fp16")
    dtype = torch.float16 if precision == "fp16" else torch.float32
    tensors = {}
    for name, tensor in module.state_dict().items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite in {precision}")
        tensors[name] = tensor.contiguous()
    path = Path(path)
    # As `engine.files.whole`, which the networks cannot import: they stand alone.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with part.open("xb") as file:  # no link that someone put there is followed
            file.write(safetensors.torch.save(tensors))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, pickles: bool) -> object:
    """Read a checkpoint file of any format."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{path}: is a pipe or a device, not a checkpoint file")
        if status.st_size > MAX_BYTES:
            raise CheckpointError(
                f"{path}: has {status.st_size / 2**30:.2f} GiB; expected at most "
                f"{MAX_BYTES / 2**30:.0f} GiB"
            )
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a folder, not a checkpoint file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None

    if not head:
        raise CheckpointError(f"{path}: is empty")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer; fetch the file itself: git lfs pull")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise CheckpointError(f"{path}: is a web page, not a checkpoint; download it again")
    # A safetensors file starts with the length of its JSON header, in 8 bytes.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        try:
            return _read_safetensors(path)
        except MemoryError:
            raise CheckpointError(f"{path}: {_NO_MEMORY}") from None
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: broken safetensors file: {_line(error)[:120]}"
            ) from None
    # torch.save writes a zip archive; older versions wrote a pickle.
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"{path}: not a checkpoint file{_guess_from_suffix(path)}")
    if not pickles:
        raise PickleError(f"{path}: is a pickle; expected a safetensors file")
    try:
        with warnings.catch_warnings():  # about TorchScript files, which are refused below
            warnings.simplefilter("ignore")
            return read_pickle(path)
    except TooLarge as error:
        raise CheckpointError(f"{path}: {error}") from None
    except pickle.UnpicklingError as error:
        if name := refused_global(error):
            raise CheckpointError(
                f"{path}: refused, because it contains {name}, and a pickle with more than tensors "
                "can run code; save only the network's state_dict"
            ) from None
        if "Unsupported operand" in str(error):
            raise CheckpointError(
                f"{path}: is broken, or a pickle of another protocol than torch.save's, which "
                "cannot be read safely; save the network's state_dict with torch.save"
            ) from None
        raise CheckpointError(f"{path}: broken or truncated checkpoint file") from None
    except Exception as error:
        # torch.load's exceptions are not documented. For broken files it has raised EOFError,
        # RuntimeError, KeyError, UnicodeDecodeError and others.
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: is a TorchScript program; save the network's state_dict instead"
            ) from None
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise CheckpointError(f"{path}: {_NO_MEMORY}") from None
        raise CheckpointError(f"{path}: broken or truncated checkpoint file") from None


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    # Not `load_file`, which needs a name in UTF-8, and crashes if the file is truncated, because it
    # maps it.
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # Every tensor's description is a JSON object. A brace in a name counts too, which is rare.
        if length > MAX_HEADER or file.read(length).count(b"{") > MAX_ENTRIES:
            raise CheckpointError(
                f"{path}: has more names than expected: at most {MAX_ENTRIES} in "
                f"{MAX_HEADER // 10**6} MB"
            )
        file.seek(0)
        return safetensors.torch.load(file.read())


def _state_dicts(path: Path, content: object) -> list[dict[str, torch.Tensor]]:
    """Return every mapping from names to weights in a checkpoint, the outermost first.

    A pickle may refer to one mapping many times. It is returned once, and visited again only if
    more of its inner mappings can be reached.
    """
    found: dict[int, dict[str, torch.Tensor]] = {}  # by the mapping's id
    visited: dict[int, int] = {}  # how many levels below it were visited
    entries = 0

    def visit(value: object, levels: int) -> None:
        nonlocal entries
        if not isinstance(value, Mapping) or visited.get(id(value), -1) >= levels:
            return
        visited[id(value)] = levels
        if "param_groups" in value:  # an optimizer, whose tensors are not weights
            return
        entries += len(value)
        if entries > MAX_ENTRIES:
            raise CheckpointError(f"{path}: has more than {MAX_ENTRIES} entries")
        if id(value) not in found:
            tensors = {
                name: tensor
                for name, tensor in value.items()
                if isinstance(name, str)
                and isinstance(tensor, torch.Tensor)
                and not tensor.is_nested
            }
            longest = max(map(len, tensors), default=0)
            if longest > MAX_NAME:
                raise CheckpointError(
                    f"{path}: has a name of {longest} characters; expected at most {MAX_NAME}"
                )
            found[id(value)] = tensors
        if levels:
            for inner in value.values():
                visit(inner, levels - 1)

    visit(content, 3)
    return [tensors for tensors in found.values() if tensors]


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the prefixes of wrappers (`module.`, `_orig_mod.`, `audio_encoder.`) from the names.

    A prefix is common to all names, which a network's own names never are.
    """
    common = os.path.commonprefix(list(tensors))  # noqa: RUF071, of texts that are no paths
    start = common.rfind(".") + 1
    return {name[start:]: tensor for name, tensor in tensors.items()}


@functools.cache
def _expected(kind: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return _NETWORKS[kind]().state_dict()


@functools.cache
def _required(kind: str) -> int:
    """Return the number of names that a checkpoint of this network has at least."""
    return sum(not name.endswith(_COUNTER) for name in _expected(kind))


def _misfit(kind: str, tensors: dict[str, torch.Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Return the names that are missing, unexpected, and of another shape."""
    expected = _expected(kind)
    missing = [n for n in expected if n not in tensors and not n.endswith(_COUNTER)]
    unexpected = [n for n in tensors if n not in expected]
    misshaped = [
        f"{n} {str(list(tensors[n].shape))[:60]} instead of {list(expected[n].shape)}"
        for n in expected
        if n in tensors and tensors[n].shape != expected[n].shape
    ]
    return missing, unexpected, misshaped


def _refuse_dtypes(path: Path, kind: str, tensors: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError for weights that are not dense floating-point tensors."""
    for name, expected in _expected(kind).items():
        tensor = tensors.get(name)
        if tensor is None or not expected.is_floating_point():
            continue
        if not tensor.is_floating_point():  # quantized, integer or complex
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}; expected floating point; save the network "
                "before it is quantized or converted"
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            what = "without values (meta)" if tensor.is_meta else str(tensor.layout)
            raise CheckpointError(f"{path}: {name} is {what}; expected a dense tensor")


def _describe(misfit: tuple[list[str], list[str], list[str]]) -> str:
    parts = []
    for word, names in zip(("missing", "unexpected", "mis-shaped"), misfit, strict=True):
        if names:
            more = ", ..." if len(names) > 3 else ""
            parts.append(f"{len(names)} {word}: {', '.join(names[:3])}{more}")
    return "; ".join(parts)


def _guess(tensors: dict[str, torch.Tensor], wanted: str | None) -> str:
    """Guess what a state dict of another network is."""
    for kind, words in _WORDS.items():
        if kind != wanted and not any(_misfit(kind, tensors)):
            return f"it is {words}"
    parts = {name.partition(".")[0] for name in tensors}
    if any(part.startswith("face_decoder_blocks") for part in parts):
        return "it looks like a Wav2Lip network"
    if {"face_encoder", "audio_encoder"} <= parts:
        return "it looks like a SyncNet, which is only used in training"
    kind = max(_NETWORKS, key=lambda kind: len(_expected(kind).keys() & tensors.keys()))
    missing, unexpected, misshaped = _misfit(kind, tensors)
    if 2 * len(missing) > len(_expected(kind)):
        return "it is an unknown network"
    if not misshaped and not unexpected:
        return f"it is {_WORDS[kind]} with parts missing"
    if all(name.startswith("audio_model.") for name in missing + unexpected + misshaped):
        return "it looks like a generator for other audio features, such as WeNet's or Whisper's"
    return f"it looks like {_WORDS[kind]} of another size or design"


def _guess_without_weights(content: object) -> str:
    if isinstance(content, Mapping):
        # Only texts, because the text of a nested key may be longer than any memory.
        keys = sorted(key[:50] for key in content if isinstance(key, str))
        if "param_groups" in content or any("optim" in key for key in keys):
            return ": it is the state of an optimizer, without a network"
        if keys:
            return f": its entries are {', '.join(keys[:5])}"
    return ""


def _guess_from_suffix(path: Path) -> str:
    if path.suffix == ".onnx":
        return ": an ONNX file needs no export"
    if path.suffix in (".plan", ".engine", ".trt"):
        return ": it is a TensorRT plan"
    return ": neither PyTorch nor safetensors"


def _build(path: Path, kind: str, tensors: dict[str, torch.Tensor]) -> nn.Module:
    # On the meta device, because initializing weights would change the caller's random state.
    with torch.device("meta"):
        network = _NETWORKS[kind]()
    weights = {}
    for name, expected in network.state_dict().items():
        tensor = tensors.get(name)
        if tensor is None:
            tensor = torch.zeros((), dtype=expected.dtype)
        tensor = tensor.to(expected.dtype)
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(f"{path}: {name} has {bad} values that are not finite")
        weights[name] = tensor
    network.to_empty(device="cpu")
    network.load_state_dict(weights)
    return network.eval()


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
