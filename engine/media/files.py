"""Open media files with FFmpeg's libraries (PyAV), and turn their errors into one line."""

import os
import stat
from typing import Any

import av

from ..errors import InputError
from ..reading import IrregularFile, open_regular
from . import limits
from .sample_tables import check_sample_tables
from .wave_format import check_wave_format

# FFmpeg's names of the formats that are read: those that hold their media themselves. Playlists
# (HLS, DASH, concat, SDP, IMF) name other files, which may be anyone's, or never end.
FORMATS = (
    "wav,w64,mp3,aac,loas,flac,ogg,ac3,eac3,dts,amr,aiff,au,caf,tta,wv,ape,g722,gsm,"
    "mov,matroska,avi,asf,flv,mpeg,mpegts,mxf,nut,dv,"
    "h264,hevc,m4v,mpegvideo,ivf,obu,gif,yuv4mpegpipe"
)
EXPECTED = "expected a media file, such as wav, mp3, flac, ogg, m4a, mp4, mov, mkv, webm, avi or ts"
CANNOT = "cannot be read as audio or video"
# How a playlist begins, or what an XML file contains -> what it is
BEGINNINGS = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat version": "an FFmpeg concat script",
    b"v=0": "an SDP session description",
    b"[playlist]": "a PLS playlist",
}
ELEMENTS = {
    b"<MPD": "a DASH manifest",
    b"<CompositionPlaylist": "an IMF playlist",
    b"<SmoothStreamingMedia": "a Smooth Streaming manifest",
}


def open_media(path: str | os.PathLike) -> av.container.InputContainer:
    """Open a file for reading. All media are opened by this function.

    Only regular files are opened, in one of `FORMATS`, and FFmpeg opens no other file. Opening and
    each packet have `limits.TIMEOUT` seconds, and frames much larger than `limits.MAX_PIXELS` are
    not decoded.

    Raises:
        InputError: there is no such file, it is not a regular one, or FFmpeg cannot read it.
    """
    _check_regular(path)
    check_sample_tables(path)
    check_wave_format(path)
    # FFmpeg also counts the edges that decoders add to a frame.
    options = {"max_pixels": str(2 * limits.MAX_PIXELS)}
    with reading(path):
        try:
            container = av.open(
                media_url(path),
                metadata_errors="replace",  # tags are not always valid UTF-8, as FFmpeg assumes
                options={
                    "format_whitelist": FORMATS,
                    "protocol_whitelist": "file",
                    **options,
                },
                timeout=limits.TIMEOUT,
            )
        except av.error.FFmpegError as error:
            kind = _playlist(path)
            if kind or isinstance(error, av.error.ArgumentError):  # another of FFmpeg's formats
                found = f"is {kind}, which names other files" if kind else CANNOT
                raise InputError(f"{path} {found}; {EXPECTED}") from error
            raise
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = options
    return container


def media_url(path: str | os.PathLike) -> str:
    """Return a URL of the file, because FFmpeg takes a colon, as in "12:30.wav", for a protocol."""
    return f"file:{path}"


class reading:
    """Turns FFmpeg's errors into an `InputError` that names the file."""

    def __init__(self, path: str | os.PathLike):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, av.error.ExitError):
            raise InputError(
                f"{self._path} gives no sound or picture within {limits.TIMEOUT:g} s"
            ) from error
        if isinstance(error, av.error.FFmpegError):
            raise InputError(f"{self._path} {CANNOT}: {error.strerror}") from error


def _check_regular(path: str | os.PathLike) -> None:
    """Refuse what is not a regular file: opening a pipe or reading a device may block forever."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
    except IrregularFile as error:
        if stat.S_ISDIR(error.mode):
            raise InputError(f"{path} is a folder; expected a file") from None
        kind = "a pipe" if stat.S_ISFIFO(error.mode) else "a device"
        kind = "a socket" if stat.S_ISSOCK(error.mode) else kind
        raise InputError(
            f"{path} is {kind}; expected a regular file, because it is read more than once"
        ) from None
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null byte
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not size:  # also the kernel's files, as in /proc, of which some block
        raise InputError(f"{path} is empty; {EXPECTED}")


def _playlist(path: str | os.PathLike) -> str | None:
    """Return what kind of playlist a file is; None if it is none of those known."""
    try:
        with open_regular(path) as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return None
    for mark, kind in BEGINNINGS.items():
        if head.startswith(mark):
            return kind
    return next((kind for mark, kind in ELEMENTS.items() if mark in head), None)
