"""What values of the configuration's section `web` look like."""

from urllib.parse import SplitResult, urlsplit

from engine.errors import shortened

DEFAULT_PORTS = {"ws": 80, "wss": 443}
ICE_SCHEMES = ("stun:", "stuns:", "turn:", "turns:")


def origin_fault(origin: object) -> str | None:
    """Return why a value is no origin of web pages; None if it is one."""
    expected = 'expected such as "https://example.org", without a path, or "*"'
    if not isinstance(origin, str):
        return f"is {shortened(origin)}; {expected}"
    parts = _split(origin)
    if origin == "*" or (
        parts is not None
        and parts.scheme in ("http", "https")
        and parts.netloc
        and (parts.path, parts.query, parts.fragment) == ("", "", "")
        and origin == origin.lower()
    ):
        return None
    return f"is {shortened(origin)}; {expected}"


def ice_fault(url: object) -> str | None:
    """Return why a value is no address of a STUN or TURN server; None if it is one."""
    if isinstance(url, str) and url.startswith(ICE_SCHEMES) and url.partition(":")[2]:
        return None
    return f'is {shortened(url)}; expected such as "stun:stun.example.org:3478"'


def livekit_origin(url: object) -> str | None:
    """Return scheme, host and port of a LiveKit server's address; None if it is no such address."""
    parts = _split(url) if isinstance(url, str) else None
    if (
        parts is None
        or parts.scheme not in DEFAULT_PORTS
        or not parts.hostname
        or "@" in parts.netloc
        or (parts.path.strip("/"), parts.query, parts.fragment) != ("", "", "")
    ):
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or DEFAULT_PORTS[parts.scheme]}"


def livekit_fault(url: object) -> str | None:
    """Return why a value is no address of a LiveKit server, without it where it may have a secret;
    None if it is one."""
    if livekit_origin(url) is not None:
        return None
    if isinstance(url, str) and "@" in url:
        return "has a user or a password; expected none"
    return f'is {shortened(url)}; expected such as "wss://livekit.example.org"'


def voice_fault(url: str) -> str | None:
    """Return why a text is no address of a service for speech, without it where it may have a
    secret; None if it is one."""
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
        return f'is {shortened(url)}; expected "espeak", "none", or such as "http://HOST/v1/audio/speech"'
    if "@" in parts.netloc:
        return "has a user or a password; expected key_variable to name the variable with the key"
    return None


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        port = parts.port  # raises an error if it is no number
    except ValueError:
        return None
    return parts if port != 0 and url.isprintable() and " " not in url else None
