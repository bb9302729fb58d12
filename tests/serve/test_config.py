"""The configuration: the Go server's file, ours, and every mistake in one line with its place."""

import logging
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from engine.errors import InputError
from serve import config as config_module
from serve import yaml_file
from serve.config import Config, IceServer, Model, Voice, Web, load
from tests.conftest import DEMO, ROOT
from tests.serve.files import EXAMPLE, GO, go_folder

SECRET = "correct-horse-battery-staple"


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("VISEME_TOKENS", raising=False)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(folder: Path, text: str | bytes, **options) -> str:
    """Return the error's line, without the folder."""
    with pytest.raises(InputError) as error:
        load(written(folder, text), **options)
    assert error.value.__cause__ is None
    return str(error.value).replace(f"{folder}/", "")


# --- the Go server's file ------------------------------------------------------------------------


def test_the_go_servers_file(tmp_path, caplog):
    """Every value of it, as PyYAML reads it."""
    config = load(go_folder(tmp_path))
    raw = yaml.safe_load(GO)
    assert (config.server.host, config.server.port) == ("127.0.0.1", 50053)
    assert config.server.max_message_size_mb == 100 and config.server.tokens == ()
    assert config.gpus.count == 1 and config.gpus.assignment_strategy == "least-loaded"
    for key in ("max_models", "max_memory_gb", "eviction_policy", "idle_timeout_minutes"):
        assert getattr(config.capacity, key) == raw["capacity"][key]
    assert config.output.jpeg_quality == 80 and config.log_level == "warning"
    assert config.networks.precision is None
    assert list(config.models) == ["anna", "no", "1e3"]
    people = tmp_path / "people"
    anna, no, film = config.models.values()
    assert anna.model_path == people / "anna/checkpoint/model_best.onnx"
    assert anna.crop_rects_path == people / "anna/crop_rects.json"
    assert (anna.background_dir, anna.source_video) == (people / "anna/frames", None)
    assert (film.background_dir, film.source_video) == (None, people / "film.mp4")
    assert [m.preload for m in config.models.values()] == [True, False, True]
    assert [m.num_frames for m in config.models.values()] == [523, 2000, 2000]
    assert [m.preferred_gpu for m in config.models.values()] == [0, -1, -1]
    assert no.avatar is None


def test_keys_without_meaning_are_named_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(go_folder(tmp_path))
    (record,) = caplog.records
    named = re.findall(r"([\w.*]+) \(line (\d+)\)", record.getMessage())
    lines = [int(line) for _, line in named]
    assert lines == sorted(lines)
    ignored = {key for key, _ in named}
    raw = yaml.safe_load(GO)
    assert ignored == {
        "server.worker_count_per_gpu",
        "server.queue_size",
        "gpus.memory_gb_per_gpu",
        "gpus.allow_multi_gpu_models",
        "capacity.background_cache_frames",
        *(f"onnx.{key}" for key in raw["onnx"]),
        *(f"logging.{key}" for key in raw["logging"] if key != "log_level"),
        *(f"models.*.{key}" for key in raw["models"]["anna"] if key.startswith(("crops", "rois"))),
    }
    assert "server.queue_size (line 5)" in record.getMessage()


def test_what_is_zero_there_is_the_default(tmp_path):
    text = """\
server: {max_message_size_mb: 0}
capacity: {max_models: 0, max_memory_gb: 0, idle_timeout_minutes: 0, eviction_policy: ""}
output: {jpeg_quality: 0}
gpus: {assignment_strategy: }
onnx:
models: {demo: {avatar: .}}
"""
    config = load(written(tmp_path, text))
    assert config.server == Config().server and config.output == Config().output
    assert config.capacity.max_models == 100 and config.capacity.max_memory_gb is None
    assert config.capacity.idle_timeout_minutes == 0 and config.gpus.count == 1


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("port: ':50051'", "127.0.0.1", 50051),
        ("port: 50051", "127.0.0.1", 50051),
        ("port: '50051'", "127.0.0.1", 50051),
        ("port: 0.0.0.0:50051", "0.0.0.0", 50051),
        ("port: '[::]:50051'", "::", 50051),
        ("host: 10.0.0.7", "10.0.0.7", 50053),
        ("host: 10.0.0.7\n  port: 10.0.0.7:1", "10.0.0.7", 1),
    ],
)
def test_addresses(tmp_path, text, host, port):
    config = load(written(tmp_path, f"server:\n  {text}\nmodels: {{a: {{avatar: .}}}}"))
    assert (config.server.host, config.server.port) == (host, port)


def test_merge_keys_and_aliases(tmp_path):
    """As `yaml.safe_load` reads them; what is written out wins."""
    go_folder(tmp_path)
    text = """\
models:
  anna: &anna
    model_path: people/anna/checkpoint/model_best.onnx
    background_dir: people/anna/frames
    crop_rects_path: people/anna/crop_rects.json
    num_frames: 10
  berta: *anna
  carla:
    <<: *anna
    num_frames: 20
  dora:
    num_frames: 30
    <<: [{num_frames: 1, preferred_gpu: 0}, *anna]
"""
    config = load(written(tmp_path, text))
    for name, model in yaml.safe_load(text)["models"].items():
        assert config.models[name].num_frames == model["num_frames"]
        assert config.models[name].preferred_gpu == model.get("preferred_gpu", -1)
        assert config.models[name].crop_rects_path == tmp_path / model["crop_rects_path"]


def test_many_models(tmp_path):
    """11,000, which that server's documentation speaks of."""
    model = "{model_path: p/m, background_dir: p, crop_rects_path: p/m, num_frames: 9}"
    text = "models_root: .\nmodels:\n" + "".join(f"  m{n}: {model}\n" for n in range(11000))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "m").touch()
    assert len(load(written(tmp_path, text)).models) == 11000


# --- ours ----------------------------------------------------------------------------------------


def test_our_own_sections(tmp_path):
    for name in ("cert.pem", "key.pem", "enc.onnx"):
        (tmp_path / name).touch()
    (tmp_path / "tokens").write_text(f"# of the agents\n\n{SECRET}\n")
    text = """\
server:
  host: 0.0.0.0
  http_port: 0
  drain_seconds: 2.5
  tls: {certificate: cert.pem, key: key.pem}
  tokens_file: tokens
  tokens: [0123456789abcdef, aaaaaaaaaaaaaaaaaaaa==]
limits: {max_sessions: 3, idle_seconds: 5}
output: {visual_layout: planar, audio_context_frames: 8}
networks: {runtime: torch, batch_size: 4}
logging: {level: debug}
audio_encoder: enc.onnx
models:
  demo: {avatar: ., audio_encoder: enc.onnx, preload: true}
"""
    config = load(written(tmp_path, text), device="cpu")
    server = config.server
    assert server.tls.certificate == tmp_path / "cert.pem" and server.drain_seconds == 2.5
    assert server.tokens == ("0123456789abcdef", "aaaaaaaaaaaaaaaaaaaa==", SECRET)
    assert SECRET not in repr(config) and "0123456789abcdef" not in repr(config)
    assert config.limits.max_sessions == 3 and config.limits.max_renders == 4
    assert config.output.visual_layout == "planar" and config.output.audio_context_frames == 8
    assert config.log_level == "debug" and config.audio_encoder == tmp_path / "enc.onnx"
    assert config.models["demo"].preload and config.models["demo"].avatar == tmp_path
    assert config.models["demo"].audio_encoder == tmp_path / "enc.onnx"
    assert config.gpus.count == 0 and config.networks.precision is None


def test_an_encoder_beside_the_file(tmp_path):
    path = written(tmp_path, "models: {a: {avatar: .}}")
    assert load(path).audio_encoder is None
    (tmp_path / "audio_encoder.onnx").touch()
    assert load(path).audio_encoder == tmp_path / "audio_encoder.onnx"


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    path = go_folder(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    config = load(path.relative_to(tmp_path.parent))
    assert config.models["anna"].background_dir == tmp_path / "people/anna/frames"


def test_tokens_of_the_environment(tmp_path, monkeypatch):
    path = written(tmp_path, "models: {a: {avatar: .}}")
    monkeypatch.setenv("VISEME_TOKENS", f"{SECRET}, 0123456789abcdef {SECRET}")
    assert load(path).server.tokens == (SECRET, "0123456789abcdef")
    for wrong in ("", " , ", "too-short-secret"[:15], f"{SECRET}é"):
        monkeypatch.setenv("VISEME_TOKENS", wrong)
        with pytest.raises(InputError, match="VISEME_TOKENS") as error:
            load(path)
        assert wrong.strip(" ,") == "" or wrong not in str(error.value)


def test_options_win(tmp_path):
    path = go_folder(tmp_path)
    config = load(path, avatars=[f"me={tmp_path}"], host="::1", port=0, http_port=81, device="cuda")
    assert (config.server.host, config.server.port, config.server.http_port) == ("::1", 0, 81)
    assert list(config.models) == ["anna", "no", "1e3", "me"]
    assert config.models["me"].avatar == tmp_path and config.models["me"].preload
    assert config.gpus.count == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"port": 65536}, "--port: port is 65536; expected less than or equal to 65535"),
        ({"http_port": -1}, "--http-port: http_port is -1"),
        ({"avatars": ["demo"]}, "--avatar is 'demo'; expected NAME=DIR"),
        ({"avatars": ["=x"]}, "name '' of a model cannot be used"),
        ({"avatars": ["a=/nowhere"]}, "/nowhere is no folder"),
        ({"avatars": [f"a={DEMO}", f"a={DEMO}"]}, "a is there already"),
    ],
)
def test_mistakes_in_options(options, expected):
    with pytest.raises(InputError, match=re.escape(expected)) as error:
        load(None, **options)
    assert "\n" not in str(error.value)


def test_without_a_file(tmp_path, monkeypatch):
    config = load(None)
    assert list(config.models) == ["demo"] and config.models["demo"].avatar == DEMO
    assert list(load(None, avatars=[f"x={tmp_path}"]).models) == ["x"]
    monkeypatch.setattr(config_module, "DEMO", tmp_path / "none")
    with pytest.raises(InputError, match="no avatar to serve; expected --avatar"):
        load(None)


@pytest.mark.parametrize("there", [0, 2])
def test_gpus(tmp_path, monkeypatch, there):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    path = written(tmp_path, "models: {a: {avatar: .}}")
    assert load(path).gpus.count == there
    assert load(path, device="cpu").gpus.count == 0
    off = "gpus: {enabled: false, count: 9}\nmodels: {a: {avatar: .}}"
    assert load(written(tmp_path, off)).gpus.count == 0
    many = "gpus:\n  count: 9\nmodels: {a: {avatar: .}}"
    line = refused(tmp_path, many)
    assert line.startswith(f"c.yaml:2:3: gpus.count is 9, but PyTorch finds {there};")
    if there == 0:
        with pytest.raises(InputError, match="--device is cuda, but PyTorch finds no GPU"):
            load(written(tmp_path, "models: {a: {avatar: .}}"), device="cuda")


def test_the_example(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    config = load(EXAMPLE)
    assert config.models["demo"].avatar == DEMO


# --- mistakes ------------------------------------------------------------------------------------

MODEL = "models: {a: {avatar: .}}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server:\n\tport: 3", "c.yaml:2:1: is not YAML: found character"),
        ("a: [1", ": is not YAML: "),
        ("a: 1\n---\nb: 2", "c.yaml:2:1: is not YAML: but found another document"),
        ("a: *b", "c.yaml:1:4: is not YAML: found undefined alias"),
        ("a: !x 1", "c.yaml:1:4: has an unknown tag"),
        ("a: !!python/object:os.system 1", "c.yaml:1:4: has an unknown tag"),
        ("models: !!set {a}", "c.yaml:1:9: has a tag"),
        ("a: !!int x", "c.yaml:1:4: cannot be read as int"),
        (f"a: {'1' * 5000}", "c.yaml:1:4: cannot be read as int"),
        ("a: 1\n? [b]\n: 2", "c.yaml:2:3: a key is a mapping or a list"),
        (b"a: 1\nb: \xff", "c.yaml:2:4: is not UTF-8"),
        ("a: 1\nb: \x01", "c.yaml:2:4: is not YAML:"),
        ("[" * 30, "c.yaml:1:21: is nested deeper than 20"),
        ("[" * 100000, "nest"),
        ("a: &a [*a]", "is nested deeper than 20"),
        ("a: &a {<<: *a}", "<< does not name a mapping"),
        ("[]", "c.yaml:1:1: the file is []; expected keys and values"),
        ("server: 3", "c.yaml:1:1: server is 3; expected keys and values"),
        ("models: [1]", "c.yaml:1:1: models is [1]; expected keys and values"),
        ("models: {a: }", "c.yaml:1:10: models.a is None; expected keys and values"),
        ("server:\n  port: 1\n  port: 2", "c.yaml:3:3: 'port' is in line 2 too"),
        ("sever: {}", "c.yaml:1:1: sever is not known; did you mean server?"),
        ("zzz: ", "c.yaml:1:1: zzz is not known; expected: audio_encoder, capacity,"),
        ("server:\n  max_mesage_size_mb: 1", "c.yaml:2:3: server.max_mesage_size_mb is not known; did you mean max_message_size_mb?"),
        ("onnx: {intra_op_thread: 1}", "c.yaml:1:8: onnx.intra_op_thread is not known; did you mean intra_op_threads?"),
        ("server: {max_message_size_mb: 2001}", "c.yaml:1:10: server.max_message_size_mb is 2001; expected less than or equal to 2000"),
        ("server: {max_message_size_mb: 1.5}", "is 1.5; expected a whole number"),
        ("server: {max_message_size_mb: true}", "is True; expected a whole number"),
        ("server: {max_message_size_mb: '7'}", "is '7'; expected a whole number"),
        ("server: {drain_seconds: .inf}", "is inf; expected a finite number"),
        ("server: {drain_seconds: .nan}", "is nan; expected"),
        ("server: {host: 3}", "server.host is 3; expected text"),
        ("server: {port: ':70000'}", "server.port is 70000; expected less than or equal to 65535"),
        ("server: {port: ':x'}", "c.yaml:1:10: server.port is ':x'; expected a port, such as"),
        ("server: {host: a, port: 'b:1'}", "server.host and server.port name 2 hosts"),
        ("server:\n  tls:\n    certificate: c.yaml", "c.yaml:2:3: server.tls.key is not there"),
        ("server: {tls: {certificate: none.pem}}", "server.tls.certificate: none.pem does not exist"),
        ("server: {tls: {certificates: c.yaml}}", "c.yaml:1:16: server.tls.certificates is not known; did you mean certificate?"),
        ("server: {tokens_file: none}", "server.tokens_file: none does not exist"),
        (f"server: {{tokens_file: c.yaml}}\n{MODEL}", "c.yaml:1: the token has 29 characters, or one that is not"),
        ("server: {tokens: }", "c.yaml:1:10: server.tokens has no token; expected one, or no such key"),
        ("server: {tokens: []}", "server.tokens has no token"),
        ("server: {tokens_file: ''}", "server.tokens_file has no token"),
        ("gpus: {assignment_strategy: random}", "is 'random'; expected 'round-robin' or 'least-loaded'"),
        ("gpus: {enabled: 1}", "gpus.enabled is 1; expected true or false"),
        ("output: {format: raw}", "output.format is 'raw'; expected jpeg"),
        ("output: {jpeg_quality: 101}", "output.jpeg_quality is 101"),
        ("logging:\n  log_level: loud", "c.yaml:2:3: logging.log_level is 'loud'; expected debug, info"),
        ("logging: {level: 3}", "c.yaml:1:11: logging.level is 3; expected debug, info"),
        ("models: {'': {avatar: .}}", "the name '' of a model cannot be used"),
        (f"models: {{{'n' * 101}: {{avatar: .}}}}", "of a model cannot be used; expected 1 to 100"),
        ('models: {"a\\nb": {avatar: .}}', "the name 'a\\nb' of a model cannot be used"),
        ("models:\n  a:\n    avatar: nowhere", "c.yaml:3:5: models.a.avatar: nowhere is no folder"),
        ("models: {a: {avatar: ., model_path: c.yaml}}", "models.a has avatar and model_path"),
        ("models: {a: {avatar: 3}}", "models.a.avatar is 3; expected a path as text"),
        ('models: {a: {avatar: "\\0"}}', "expected a path as text"),
        ("models: {a: {model_path: c.yaml}}", "models.a has no crop_rects_path; expected"),
        ("models: {a: {num_frames: 3}}", "models.a has no model_path; expected model_path, or avatar: DIR"),
        ("models: {a: {model_path: c.yaml, crop_rects_path: c.yaml}}", "models.a has no background_dir or source_video"),
        ("models: {a: {model_path: x, crop_rects_path: c.yaml, background_dir: .}}", "models.a.model_path: x does not exist"),
        ("models: {a: {model_path: c.yaml, crop_rects_path: c.yaml, background_dir: x}}", "c.yaml:1:59: models.a.background_dir: x does not exist"),
        ("models: {a: {avatar: ., num_frames: -1}}", "models.a.num_frames is -1; expected greater"),
        ("models: {a: {avatar: ., preload: yes please}}", "models.a.preload is 'yes please'; expected true"),
        ("models: {a: {avatar: ., preferred_gpus: 1}}", "did you mean preferred_gpu?"),
        ("models_root: 3", "models_root is 3; expected a path"),
        ("audio_encoder: gone.onnx", "audio_encoder: gone.onnx does not exist"),
        ("{}", "there is no avatar to serve"),
        ("", "there is no avatar to serve"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(tmp_path, text, expected):
    line = refused(tmp_path, text)
    assert expected in line
    assert "\n" not in line and len(line) <= 1000
    if "there is no avatar" not in expected:
        assert re.match(r"c\.yaml:\d+(:\d+)?: ", line)


def test_files_that_cannot_be_read(tmp_path):
    for name, expected in (("no.yaml", "No such file"), (".", "Is a directory")):
        with pytest.raises(InputError, match=expected):
            load(tmp_path / name)
    with pytest.raises(InputError, match="larger than 16000000 bytes"):
        load(written(tmp_path, "#" * (yaml_file.MAX_BYTES + 1)))


def test_aliases_that_multiply_are_refused(tmp_path):
    """A "billion laughs": 30 lines that are 2^30 values."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30)]
    line = refused(tmp_path, "\n".join(lines))
    assert "aliases make more than" in line or "nested deeper" in line
    wide = "a: &a [" + "x, " * 2000 + "]\nb: [" + "*a, " * 2000 + "]"
    assert "c.yaml:1:" in (line := refused(tmp_path, wide)) and "aliases make more than" in line


@pytest.mark.parametrize(
    "token",
    [f"*{SECRET}", f"&{SECRET}", f"!{SECRET} x", f"%{SECRET}", f'"{SECRET}', f"{SECRET}: [",
     f"{{{SECRET}: 3}}", f"'{SECRET} '", f"@{SECRET}", "31415926535897932384626433832795", f"|\n{SECRET}"],
)  # fmt: skip
@pytest.mark.parametrize("loader", [yaml_file._Loader, yaml.SafeLoader], ids=["C", "Python"])
def test_no_error_has_a_token_in_it(tmp_path, monkeypatch, token, loader):
    """With libyaml, and without it: PyYAML's own parser puts names into its messages."""
    monkeypatch.setattr(yaml_file, "_Loader", loader)
    for text in (
        f"server:\n  tokens:\n    - {token}\n{MODEL}",
        f"server:\n  tokens: {token}\n{MODEL}",
    ):
        line = refused(tmp_path, text)
        assert SECRET[8:] not in line and "3141592653" not in line


def test_no_error_has_a_files_token_in_it(tmp_path):
    (tmp_path / "t").write_text(f"{SECRET}\n{SECRET} {SECRET}\n")
    line = refused(tmp_path, f"server: {{tokens_file: t}}\n{MODEL}")
    assert line.startswith("t:2: the token has 57 characters") and SECRET not in line
    (tmp_path / "t").write_text("# none\n")
    assert "t has no token; expected one a line" in refused(
        tmp_path, f"server: {{tokens_file: t}}\n{MODEL}"
    )


# --- anything ------------------------------------------------------------------------------------

KEYS = sorted(
    set(re.findall(r"\w+(?=:)", GO)) | {"tls", "tokens", "limits", "networks", "avatar", "x"}
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([":50053", "lfu", "debug", ".", "/", 10**90, -1, 0, "2001-01-01"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def is_read_or_refused(path: Path) -> bool:
    """Whether it gives a configuration that can be served, or one line."""
    try:
        config = load(path, device="cpu")
    except InputError as error:
        return bool(str(error)) and "\n" not in str(error) and str(error).isprintable()
    paths = [
        value
        for model in config.models.values()
        for value in model.model_dump().values()
        if isinstance(value, os.PathLike)
    ]
    return bool(config.models) and all(path.is_absolute() and path.exists() for path in paths)


@SETTINGS
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_any_values(tmp_path, data):
    assert is_read_or_refused(written(tmp_path, yaml.safe_dump(data, allow_unicode=True)))


@SETTINGS
@given(st.data())
def test_one_value_of_a_real_file_changed(tmp_path, data):
    if not (tmp_path / "people").exists():
        go_folder(tmp_path)
    raw = yaml.safe_load(GO)
    part = raw
    while isinstance(part, dict):
        above, key = part, data.draw(st.sampled_from(sorted(part, key=str)))
        part = part[key]
        if data.draw(st.integers(0, 3)) == 0:
            break
    above[key] = data.draw(VALUES)
    assert is_read_or_refused(written(tmp_path, yaml.safe_dump(raw, allow_unicode=True)))


@SETTINGS
@given(st.data())
def test_any_bytes_of_a_real_file_changed(tmp_path, data):
    text = bytearray(GO.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"&a ", b"*a", b"\t", b"!!int ", b"[", b"{", b"\n", b": ", b"\xff", b"<<"])
            | st.binary(max_size=3)
        )  # fmt: skip
    assert is_read_or_refused(written(tmp_path, bytes(text)))


@SETTINGS
@given(st.text(alphabet="ab:-[]{}&*!<>|'\"#%@,?\n \t0.", max_size=60))
def test_any_text(tmp_path, text):
    assert is_read_or_refused(written(tmp_path, text))


@SETTINGS
@given(VALUES)
def test_values_are_read_as_pyyaml_reads_them(tmp_path, data):
    """But for keys, which are text as written, and dates, which are text."""

    def plain(value):
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list) else value

    text = yaml.safe_dump(data, allow_unicode=True)
    path = written(tmp_path, text)
    expected = plain(yaml.safe_load(path.read_text("utf-8")))
    try:
        found = yaml_file.read(path)
    except InputError as error:
        assert "cannot be read as" in str(error) or "not UTF-8" in str(error)
        return
    assert repr(found.data) == repr(expected)


# --- what browsers use ---------------------------------------------------------------------------


def web_of(folder: Path, text: str) -> Web:
    section = "".join(f"\n  {line}" for line in text.splitlines())
    return load(written(folder, f"web:{section}\nmodels: {{a: {{avatar: .}}}}")).web


def test_what_browsers_use(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECH_KEY", SECRET)
    (tmp_path / "films").mkdir()
    web = web_of(
        tmp_path,
        """\
voice: {url: "https://example.org/v1/audio/speech", voice: nova, key_variable: SPEECH_KEY}
recordings: films
origins: ["https://example.org", "http://localhost:3000"]
livekit_urls: ["wss://livekit.example.org", "ws://10.0.0.7:7880"]
ice_servers:
  - urls: stun:stun.example.org
  - {urls: ["turn:turn.example.org:3478?transport=udp"], username: anna, credential: hunter2}
max_recording_mb: 5
bitrate_kbps: 900""",
    )
    voice = Voice(
        url="https://example.org/v1/audio/speech", voice="nova", key_variable="SPEECH_KEY"
    )
    assert web == Web(
        voice=voice,
        recordings=tmp_path / "films",
        origins=("https://example.org", "http://localhost:3000"),
        livekit_urls=("wss://livekit.example.org", "ws://10.0.0.7:7880"),
        ice_servers=(
            IceServer(urls=("stun:stun.example.org",)),
            IceServer(
                urls=("turn:turn.example.org:3478?transport=udp",),
                username="anna",
                credential="hunter2",
            ),
        ),
        max_recording_mb=5,
        bitrate_kbps=900,
    )
    assert SECRET not in repr(web) and "hunter2" not in repr(web)


@pytest.mark.parametrize(
    ("text", "voice"),
    [
        ("voice: espeak", Voice()),
        ("voice: {voice: en-us+m3}", Voice(voice="en-us+m3")),
        ("voice: none", None),
        ("voice:", None),
        ("{}", None),
        (
            "voice: http://127.0.0.1:8880/v1/audio/speech",
            Voice(url="http://127.0.0.1:8880/v1/audio/speech"),
        ),
    ],
)
def test_voices(tmp_path, text, voice):
    web = load(written(tmp_path, f"web:\n  {text}\nmodels: {{a: {{avatar: .}}}}")).web
    assert web == Web(voice=voice)


@pytest.mark.parametrize(
    ("text", "place", "line"),
    [
        ("vioce: espeak", "2:3", "web.vioce is not known; did you mean voice?"),
        ("voice: {modell: x}", "2:11", "web.voice.modell is not known; did you mean model?"),
        ("voice: no", "2:3", "web.voice is False; expected"),
        ("voice: festival", "2:3", 'web.voice is \'festival\'; expected "espeak"'),
        ("voice: http://u:hunter2@h/", "2:3", "web.voice has a user or a password"),
        ("voice: {url: 'http://h:x/'}", "2:11", "web.voice.url is 'http://h:x/'; expected"),
        ("voice: {key_variable: NOT_THERE}", "2:11", "has no 'NOT_THERE'"),
        ("voice: {url: 'http://h:0/'}", "2:11", "web.voice.url is 'http://h:0/'; expected"),
        ("voice: {max_characters: 0}", "2:11", "web.voice.max_characters is 0; expected"),
        ("origins: https://example.org", "2:3", "web.origins is 'https://example.org'; expected a list"),
        ("origins: ['https://example.org/']", "2:13", "web.origins[0] is 'https://example.org/'; expected"),
        ("origins: [7]", "2:13", "web.origins[0] is 7; expected"),
        ("livekit_urls: ['https://h']", "2:18", "web.livekit_urls[0] is 'https://h'; expected such as"),
        ("livekit_urls: ['ws://h:0']", "2:18", "web.livekit_urls[0] is 'ws://h:0'; expected such as"),
        ("livekit_urls: [ws://u:hunter2@h]", "2:18", "web.livekit_urls[0] has a user or a password"),
        ("recordings: nowhere", "2:3", "web.recordings: nowhere is no folder"),
        ("recordings: 7", "2:3", "web.recordings is 7; expected a path"),
        ("ice_servers: [{urls: 'http://h'}]", "2:18", "web.ice_servers[0].urls is 'http://h'; expected"),
        ("ice_servers: [{url: 'stun:h'}]", "2:18", "web.ice_servers[0].url is not known; did you mean urls?"),
        ("ice_servers: [{urls: []}]", "2:18", "web.ice_servers[0].urls is ()"),
        ("ice_servers: [{username: x}]", "2:17", "web.ice_servers[0].urls is not there"),
        ("ice_servers: [stun:h]", "2:17", "web.ice_servers[0] is 'stun:h'; expected keys and values"),
        ("ice_servers: [{urls: 'turn:h', credential: 20261}]", "2:34", "web.ice_servers[0].credential is not"),
        ("ice_servers: [{urls: 'turn:h', credential: [hunter2]}]", "2:34", "web.ice_servers[0].credential is not"),
        ("bitrate_kbps: 10", "2:3", "web.bitrate_kbps is 10; expected"),
    ],
)  # fmt: skip
def test_mistakes_in_what_browsers_use(tmp_path, text, place, line):
    """No credential is in a message."""
    said = refused(tmp_path, f"web:\n  {text}\nmodels: {{a: {{avatar: .}}}}")
    assert said.startswith(f"c.yaml:{place}: ")
    assert line.removesuffix(" is not") in said
    assert "hunter2" not in said and "20261" not in said


def test_without_a_file_texts_are_spoken_if_they_can_be(monkeypatch):
    from importlib.util import find_spec

    there = find_spec("espeakng_loader") is not None
    assert load(None, device="cpu").web == Web(voice=Voice() if there else None)
    monkeypatch.setattr(config_module, "find_spec", lambda name: None)
    assert load(None, device="cpu").web == Web()


# --- its documentation ---------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """Return each key in the pages' tables, and its default."""
    section = (ROOT / "docs" / "serving.md").read_text().partition("## Configuration\n")[2]
    text = section.partition("\n## ")[0] + (ROOT / "docs" / "cluster.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) ?\| ", text, re.M))
    assert rows.pop("cluster") == ""  # a section, on a page of its own
    return rows


def test_the_documentation_has_every_key_and_its_default():
    ours = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for key, value in field.annotation.model_fields.items():
                ours[f"{name}.{key}"] = value.default
    ours |= {f"web.voice.{key}": field.default for key, field in Voice.model_fields.items()}
    ours |= {key: field.default for key, field in Model.model_fields.items()}
    also = {"logging.level": "info", "gpus.enabled": True, "output.format": "jpeg"}
    also |= dict.fromkeys(("server.tokens_file", "audio_encoder", "models_root", "models"))
    shown = {True: "true", False: "false", None: "", (): ""}
    shown[Web().livekit_urls] = ", ".join(Web().livekit_urls)
    assert documented() == {
        key: shown[value] if value in shown and type(value) is not int else str(value)
        for key, value in {**ours, **also}.items()
    }


def test_the_example_has_the_defaults():
    """But for the demo; its lines that are comments are not checked."""
    config = load(EXAMPLE, device="cpu")
    plain = load(None, device="cpu")
    assert config == plain.model_copy(update={"models": config.models})
    assert config.models["demo"] == plain.models["demo"]


def test_the_error_in_the_documentation_is_real(tmp_path):
    page = (ROOT / "docs" / "serving.md").read_text()
    line = re.search(r"^error: config.yaml:4:3: (.*)$", page, re.M)[1]
    assert line in refused(tmp_path, "server:\n  port: 1\n\n  max_mesage_size_mb: 1\n")
