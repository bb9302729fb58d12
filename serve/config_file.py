"""A configuration's file: its keys checked, the Go server's translated, its paths made absolute."""

import difflib
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from engine.errors import InputError, shortened

from . import go_keys
from .tokens import unusable
from .web_values import ice_fault, livekit_fault, origin_fault, voice_fault
from .yaml_file import Keys, read

T = TypeVar("T", bound=BaseModel)
Error = Callable[[Keys, str], InputError]

LEVELS = ("debug", "info", "warning", "error")
MAX_NAME = 100  # characters of a model's name
_PATHS = ("avatar", "model_path", "crop_rects_path", "audio_encoder")  # of a model; and:
_PICTURES = ("background_dir", "source_video")
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text, in quotes if it looks like something else",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
}

_log = logging.getLogger("serve.config")


class ConfigFile:
    """A file, and the place of each value in it.

    Attributes:
        tokens_file: where more tokens are; an absolute path, or None.

    Raises:
        InputError: it is no YAML, see `yaml_file.read`.
    """

    def __init__(self, path: Path):
        self._file = read(path)
        self._folder = Path(os.path.abspath(path)).parent
        self._ignored: dict[str, int] = {}  # dotted keys: the first line
        self.tokens_file: Path | None = None

    def error(self, keys: Keys, message: str) -> InputError:
        """Return an error with the place of a value."""
        return self._file.error(keys, message)

    def config(self, config: type[T], model: type[BaseModel]) -> T:
        """Return the file's configuration.

        Raises:
            InputError: a key that nobody knows, a value that cannot be used, or a file that is not
                there; with the place.
        """
        sections = {
            name: set(field.annotation.model_fields)
            for name, field in config.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        }
        sections["server"] |= {"tokens_file"}
        sections["gpus"] |= {"enabled"}
        sections["output"] |= {"format"}
        sections["logging"] = {"level", "log_level"}
        others = {"models", "models_root", "audio_encoder"}
        document = {} if self._file.data is None else self._file.data
        data = self._mapping((), document)
        self._check((), document, sections.keys() | go_keys.WITHOUT_MEANING.keys() | others)
        out: dict[str, Any] = {}
        for name in data:
            if name in sections or name in go_keys.WITHOUT_MEANING:
                out[name] = self._section(name, data[name], sections.get(name, set()))
        self._level(out)
        self._server(out.get("server", {}))
        self._gpus(out.get("gpus", {}))
        self._format(out.get("output", {}))
        self._web(out.get("web", {}))
        root = self._path(("models_root",), data, self._folder)
        models = data.get("models")
        if models is not None:
            known = set(model.model_fields) | set(go_keys.PRELOAD)
            out["models"] = self._models(models, known, root or self._folder)
        beside = self._folder / "audio_encoder.onnx"
        encoder = self._path(("audio_encoder",), data, self._folder)
        if encoder is None and beside.is_file():
            encoder = beside
        if encoder is not None:
            self._check_there(("audio_encoder",), encoder)
            out["audio_encoder"] = encoder
        for nothing in go_keys.WITHOUT_MEANING.keys() - sections.keys():
            out.pop(nothing, None)
        out.pop("logging", None)
        if self._ignored:
            listed = ", ".join(f"{key} (line {line})" for key, line in self._ignored.items())
            _log.warning("%s: ignored, because they mean nothing here: %s", self._file.path, listed)
        return validated(config, out, self.error)

    # --- sections --------------------------------------------------------------------------------

    def _mapping(self, keys: Keys, value: Any) -> dict[str, Any]:
        """Return a mapping without the keys whose value is empty."""
        if not isinstance(value, dict):
            where = dotted(keys) or "the file"
            raise self.error(keys, f"{where} is {shortened(value)}; expected keys and values")
        return {key: part for key, part in value.items() if part is not None and part != ""}

    def _check(self, keys: Keys, given: Iterable[str], known: Iterable[str]) -> None:
        known = sorted(known)
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(key[:100], known, 1)
                hint = f"; did you mean {close[0]}?" if close else f"; expected: {', '.join(known)}"
                name = shortened(dotted((*keys, key)))[1:-1]
                raise self.error((*keys, key), f"{name} is not known{hint}")

    def _section(self, name: str, value: Any, known: set[str]) -> dict[str, Any]:
        if value is None:
            return {}
        without = go_keys.WITHOUT_MEANING.get(name, set())
        if not isinstance(value, dict):
            self._mapping((name,), value)
        self._check((name,), value, known | without)
        section = self._mapping((name,), value)
        if name == "server":
            for key in ("tokens", "tokens_file"):  # without tokens, nobody would be asked
                if key in value and section.get(key) in (None, []):
                    at = (name, key)
                    raise self.error(at, f"{dotted(at)} has no token; expected one, or no such key")
        for key in [key for key in section if key in without]:
            self._ignore((name, key))
            del section[key]
        for key in [key for key in section if (name, key) in go_keys.ZERO_IS_DEFAULT]:
            if type(section[key]) is int and section[key] == 0:
                del section[key]
        return section

    def _ignore(self, keys: Keys, shown: str | None = None) -> None:
        self._ignored.setdefault(shown or dotted(keys), self._file.line(keys))

    def _level(self, out: dict[str, Any]) -> None:
        for key in ("log_level", "level"):  # the last one wins
            level = out.get("logging", {}).get(key)
            if level is not None:
                name = level.lower() if isinstance(level, str) else None
                out["log_level"] = {"warn": "warning"}.get(name or "", name)
                if out["log_level"] not in LEVELS:
                    message = f"logging.{key} is {shortened(level)}; expected {', '.join(LEVELS)}"
                    raise self.error(("logging", key), message)

    def _server(self, server: dict[str, Any]) -> None:
        self.tokens_file = self._path(("server", "tokens_file"), server, self._folder)
        server.pop("tokens_file", None)
        if self.tokens_file is not None:
            self._check_there(("server", "tokens_file"), self.tokens_file)
        if isinstance(server.get("tokens"), list):
            server["tokens"] = tuple(server["tokens"])
            for number, token in enumerate(server["tokens"]):
                if isinstance(token, str) and (why := unusable(token)):
                    keys = ("server", "tokens", number)
                    raise self.error(keys, f"{dotted(keys)} {why}")
        if isinstance(tls := server.get("tls"), dict):
            self._check(("server", "tls"), tls, {"certificate", "key"})
            server["tls"] = tls = self._mapping(("server", "tls"), tls)
            for key in tls:
                tls[key] = path = self._path(("server", "tls", key), tls, self._folder)
                self._check_there(("server", "tls", key), path)
        if isinstance(address := server.get("port"), str):
            host, _, port = address.rpartition(":")
            if not (port.isascii() and port.isdigit() and len(port) <= 5):
                raise self.error(
                    ("server", "port"),
                    f"server.port is {shortened(address)}; expected a port, "
                    'such as 50053, ":50053" or "0.0.0.0:50053"',
                )
            server["port"] = int(port)
            if host:
                host = host.removeprefix("[").removesuffix("]")
                if server.setdefault("host", host) != host:
                    raise self.error(("server", "port"), "server.host and server.port name 2 hosts")

    def _gpus(self, gpus: dict[str, Any]) -> None:
        enabled = gpus.pop("enabled", True)
        if not isinstance(enabled, bool):
            keys = ("gpus", "enabled")
            raise self.error(
                keys, f"gpus.enabled is {shortened(enabled)}; expected {_EXPECTED['bool_type']}"
            )
        if not enabled:
            gpus["count"] = 0

    def _format(self, output: dict[str, Any]) -> None:
        found = output.pop("format", "jpeg")
        if found != "jpeg":
            message = (
                f"output.format is {shortened(found)}; expected jpeg, which is all that is sent"
            )
            raise self.error(("output", "format"), message)

    def _web(self, web: dict[str, Any]) -> None:
        web_keys: Keys = ("web",)
        if (recordings := self._path(("web", "recordings"), web, self._folder)) is not None:
            if not os.path.isdir(recordings):
                at = ("web", "recordings")
                raise self.error(at, f"web.recordings: {recordings} is no folder")
            web["recordings"] = recordings
        for key, fault in (("origins", origin_fault), ("livekit_urls", livekit_fault)):
            if isinstance(values := web.get(key), list):
                web[key] = tuple(values)
                for number, value in enumerate(values):
                    self._usable((*web_keys, key, number), fault(value))
        if isinstance(servers := web.get("ice_servers"), list):
            keys = (*web_keys, "ice_servers")
            web["ice_servers"] = tuple(
                self._ice_server((*keys, number), server) for number, server in enumerate(servers)
            )
        if "voice" in web:
            web["voice"] = self._voice((*web_keys, "voice"), web["voice"])

    def _ice_server(self, keys: Keys, server: Any) -> dict[str, Any]:
        if isinstance(server, dict):
            self._check(keys, server, {"urls", "username", "credential"})
        server = self._mapping(keys, server)
        urls = server.get("urls")
        if isinstance(urls, str):
            urls = [urls]
        if isinstance(urls, list):
            server["urls"] = tuple(urls)
            for url in urls:
                self._usable((*keys, "urls"), ice_fault(url))
        return server

    def _voice(self, keys: Keys, voice: Any) -> Any:
        """Return a voice's section, or "espeak" or "none"."""
        if voice in ("espeak", "none"):
            return voice
        if isinstance(voice, str):
            voice = {"url": voice}
            self._usable(keys, voice_fault(voice["url"]))
        elif isinstance(voice, dict):
            known = {"url", "model", "voice", "key_variable", "max_characters"}
            self._check(keys, voice, known)
            voice = self._mapping(keys, voice)
            if isinstance(voice.get("url"), str):
                self._usable((*keys, "url"), voice_fault(voice["url"]))
            variable = voice.get("key_variable")
            if isinstance(variable, str) and not os.environ.get(variable):
                at = (*keys, "key_variable")
                raise self.error(at, f"{dotted(at)}: the environment has no {shortened(variable)}")
        return voice

    def _usable(self, keys: Keys, fault: str | None) -> None:
        if fault is not None:
            raise self.error(keys, f"{dotted(keys)} {fault}")

    # --- models ----------------------------------------------------------------------------------

    def _models(self, models: Any, known: set[str], root: Path) -> dict[str, Any]:
        out = {}
        if not isinstance(models, dict):
            self._mapping(("models",), models)
        for name, model in models.items():
            keys = ("models", name)
            check_name(name, partial(self.error, keys))
            if isinstance(model, dict):
                self._check(keys, model, known | go_keys.MODEL_WITHOUT_MEANING)
            out[name] = self._model(keys, self._mapping(keys, model), root)
        return out

    def _model(self, keys: Keys, model: dict[str, Any], root: Path) -> dict[str, Any]:
        for key in [key for key in model if key in go_keys.MODEL_WITHOUT_MEANING]:
            self._ignore((*keys, key), f"models.*.{key}")
            del model[key]
        wanted = []
        for key in go_keys.PRELOAD:
            if key in model:
                value = model.pop(key)
                if not isinstance(value, bool):
                    at = (*keys, key)
                    raise self.error(
                        at, f"{dotted(at)} is {shortened(value)}; expected {_EXPECTED['bool_type']}"
                    )
                wanted.append(value)
        model["preload"] = any(wanted)
        if type(model.get("num_frames")) is int and model["num_frames"] == 0:
            del model["num_frames"]
        for key in [*_PATHS, *_PICTURES]:
            if (path := self._path((*keys, key), model, root)) is not None:
                model[key] = path
        self._check_parts(keys, model)
        return model

    def _check_parts(self, keys: Keys, model: dict[str, Any]) -> None:
        """Check that a model is an avatar's folder or the Go server's files, and that they are
        there. Of its frames and its film, one is enough."""
        name = dotted(keys)
        if "avatar" in model:
            for key in ("model_path", "crop_rects_path", *_PICTURES):
                if key in model:
                    message = f"{name} has avatar and {key}; expected one of them"
                    raise self.error((*keys, key), message)
            if not os.path.isdir(model["avatar"]):
                at = (*keys, "avatar")
                raise self.error(at, f"{dotted(at)}: {model['avatar']} is no folder")
        else:
            for key in ("model_path", "crop_rects_path"):
                if key not in model:
                    message = f"{name} has no {key}; expected {key}, or avatar: DIR"
                    raise self.error(keys, message)
            pictures = [key for key in _PICTURES if key in model]
            if not pictures:
                raise self.error(keys, f"{name} has no {' or '.join(_PICTURES)}; expected one")
            there = [key for key in pictures if os.path.exists(model[key])]
            if not there:
                self._check_there((*keys, pictures[0]), model[pictures[0]])
            for key in set(pictures) - set(there):
                _log.info("%s: %s is not there; %s is used", name, model.pop(key), there[0])
        for key in ("model_path", "crop_rects_path", "audio_encoder"):
            if key in model:
                self._check_there((*keys, key), model[key])

    # --- paths -----------------------------------------------------------------------------------

    def _path(self, keys: Keys, section: dict[str, Any], base: Path) -> Path | None:
        """Return the absolute path that is the value of the last key, None if there is none."""
        value = section.get(str(keys[-1]))
        if value is None or value == "":
            return None
        if not isinstance(value, str) or not value.isprintable():
            raise self.error(keys, f"{dotted(keys)} is {shortened(value)}; expected a path as text")
        return Path(os.path.abspath(base / value))

    def _check_there(self, keys: Keys, path: Path | None) -> None:
        if path is None or not os.path.exists(path):
            raise self.error(keys, f"{dotted(keys)}: {path} does not exist")


def check_name(name: str, error: Callable[[str], InputError]) -> None:
    """Raise an error if a model cannot have this name."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise error(
            f"the name {shortened(name)} of a model cannot be used; expected 1 to {MAX_NAME} "
            "printable characters, and no space around them"
        )


def validated(kind: type[T], data: dict[str, Any], error: Error) -> T:
    """Return data as a configuration, without guesses: "3" is no number.

    Args:
        error: makes an error of the keys and the message.

    Raises:
        InputError: a value that cannot be used.
    """
    try:
        return kind.model_validate(data, strict=True)
    except ValidationError as found:
        raise _first(found, error) from None


def _first(found: ValidationError, error: Error) -> InputError:
    wrong = found.errors(include_url=False)[0]
    keys: Keys = tuple(wrong["loc"])
    name = dotted(keys)
    if wrong["type"] == "missing":
        return error(keys, f"{name} is not there; expected it")
    expected = _EXPECTED.get(wrong["type"], wrong["msg"].removeprefix("Input should be "))
    if keys[:2] == ("server", "tokens") or keys[-1:] == ("credential",):  # a secret
        return error(keys, f"{name} cannot be used; expected {expected}")
    return error(keys, f"{name} is {shortened(wrong['input'])}; expected {expected}")


def dotted(keys: Keys) -> str:
    """Return the path to a value, such as server.tokens[0]."""
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).removeprefix(".")
