"""Write docs/api.md from the docstrings: python docs/api.py

The source is parsed, not imported, so that the page is the same on every machine.
"""

import ast
import re
from pathlib import Path
from textwrap import dedent, fill

ROOT = Path(__file__).parents[1]
HEAD = """# API

This page is generated from the docstrings, by `make docs`. The [glossary](glossary.md) explains the
words.
"""
PUBLIC = """
engine/avatar/avatar.py: engine Avatar
engine/pipeline.py: engine Pipeline
engine/errors.py: engine InputError
engine/errors.py: engine.errors DeviceError
engine/live/live.py: engine.live Live
engine/live/scheduler.py: engine.live Scheduler
engine/live/session.py: engine.live Session
engine/live/piece.py: engine.live Piece Counts
engine/batches/batches.py: engine.batches SharedBatches
engine/batches/request.py: engine.batches BatchRequest BatchResult
engine/media/encode.py: engine.media.encode H264Encoder JpegEncoder EncoderPool
engine/media/encode.py: engine.media.encode EncoderQueue EncodedFrame
kernels/audio.py: kernels log_mel mel_windows feature_windows
kernels/audio.py: kernels ring_feature_windows
kernels/faces.py: kernels face_input composite
kernels/images.py: kernels resize convert_color
kernels/spec.py: kernels mel_rows mel_window_count frame_count
export/onnx.py: export export Report ExportError
models/checkpoint.py: models.checkpoint load save CheckpointError
train/data.py: train.data TrainingData Speech
"""
COMMANDS = (
    "render prepare live/__main__ build doctor ../serve/__main__ ../export/__main__ "
    "../train/__main__ ../kernels/compile"
)


def page() -> str:
    parts, section = [HEAD], ""
    for line in PUBLIC.strip().splitlines():
        path, module, *names = line.replace(":", "").split()
        if module != section:
            parts.append(f"## {module}\n")
            section = module
        nodes = {getattr(node, "name", ""): node for node in parsed(path).body}
        for name in names:
            parts += entries(f"{module}.{name}", nodes[name])
    parts.append("## Commands\n\n`--help` lists the options of a command.\n")
    for name in COMMANDS.split():
        path = (ROOT / "engine" / f"{name}.py").resolve().relative_to(ROOT)
        module = ".".join(path.with_suffix("").parts).removesuffix(".__main__")
        text = (ast.get_docstring(parsed(path)) or "").partition("\n\n")[0]
        text = re.sub(r"^`python -m [\w.]+`: ", "", text)
        parts.append(wrapped(f"- `python -m {module}`: {text}", "  "))
    return "\n".join(parts) + "\n"


def parsed(path: str | Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def entries(name: str, node: ast.AST, level: str = "###") -> list[str]:
    """Return the entry of a function or a class, and those of the class's public methods."""
    methods = [n for n in getattr(node, "body", []) if isinstance(n, ast.FunctionDef)]
    if not isinstance(node, ast.ClassDef):
        methods = []
    call = next((m for m in methods if m.name == "__init__"), node)
    parts = [f"{level} {name}\n"]
    if isinstance(call, ast.FunctionDef) and "property" not in map(
        ast.unparse, call.decorator_list
    ):
        arguments = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(call.args))
        result = f" -> {ast.unparse(call.returns)}" if call.returns and call is node else ""
        parts.append(f"```py\n{wrapped(f'{name}({arguments}){result}', '    ')}\n```\n")
    parts.append(markdown(ast.get_docstring(node) or "") + "\n")
    for method in methods:
        if not method.name.startswith("_") and ast.get_docstring(method):
            parts += entries(f"{name.rpartition('.')[2]}.{method.name}", method, "####")
    return parts


def markdown(text: str) -> str:
    """Turn the sections of a docstring (Args:, Returns:, ...) into lists."""
    parts = []
    for paragraph in text.split("\n\n"):
        head, _, body = paragraph.partition("\n")
        if re.fullmatch(r"[A-Z]\w+:", head):
            listed = head not in ("Returns:", "Yields:") or re.match(r" *[a-z_]+: ", body)
            items = re.split(r"\n(?! )", dedent(body)) if listed else []
            items = [re.sub(r"^([\w*., ]+): ", r"- `\1`: ", item) for item in items]
            text = "\n".join(wrapped(item, "  ") for item in items) or wrapped(body)
            parts.append(f"**{head}**\n\n{text}")
        else:
            parts.append(wrapped(paragraph))
    return "\n\n".join(parts)


def wrapped(text: str, indent: str = "") -> str:
    text = " ".join(text.split())
    options = {"break_long_words": False, "break_on_hyphens": False}
    return fill(text, 100, subsequent_indent=indent, **options)


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page())
