from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SampleFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLE_FORMAT_UNSPECIFIED: _ClassVar[SampleFormat]
    SAMPLE_FORMAT_S16: _ClassVar[SampleFormat]
    SAMPLE_FORMAT_F32: _ClassVar[SampleFormat]

class Picture(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_UNSPECIFIED: _ClassVar[Picture]
    PICTURE_JPEG: _ClassVar[Picture]
    PICTURE_H264: _ClassVar[Picture]
    PICTURE_RGB: _ClassVar[Picture]
    PICTURE_NONE: _ClassVar[Picture]

class RenderFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RENDER_FORMAT_UNSPECIFIED: _ClassVar[RenderFormat]
    RENDER_FORMAT_MP4: _ClassVar[RenderFormat]
    RENDER_FORMAT_JPEG: _ClassVar[RenderFormat]
    RENDER_FORMAT_RGB: _ClassVar[RenderFormat]

class Clock(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOCK_UNSPECIFIED: _ClassVar[Clock]
    CLOCK_WALL: _ClassVar[Clock]
    CLOCK_TAKEN: _ClassVar[Clock]
SAMPLE_FORMAT_UNSPECIFIED: SampleFormat
SAMPLE_FORMAT_S16: SampleFormat
SAMPLE_FORMAT_F32: SampleFormat
PICTURE_UNSPECIFIED: Picture
PICTURE_JPEG: Picture
PICTURE_H264: Picture
PICTURE_RGB: Picture
PICTURE_NONE: Picture
RENDER_FORMAT_UNSPECIFIED: RenderFormat
RENDER_FORMAT_MP4: RenderFormat
RENDER_FORMAT_JPEG: RenderFormat
RENDER_FORMAT_RGB: RenderFormat
CLOCK_UNSPECIFIED: Clock
CLOCK_WALL: Clock
CLOCK_TAKEN: Clock

class ListAvatarsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAvatarsResponse(_message.Message):
    __slots__ = ("avatars",)
    AVATARS_FIELD_NUMBER: _ClassVar[int]
    avatars: _containers.RepeatedCompositeFieldContainer[AvatarInfo]
    def __init__(self, avatars: _Optional[_Iterable[_Union[AvatarInfo, _Mapping]]] = ...) -> None: ...

class AvatarInfo(_message.Message):
    __slots__ = ("name", "loaded", "width", "height", "fps", "sessions", "capacity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    loaded: bool
    width: int
    height: int
    fps: float
    sessions: int
    capacity: int
    def __init__(self, name: _Optional[str] = ..., loaded: bool = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., fps: _Optional[float] = ..., sessions: _Optional[int] = ..., capacity: _Optional[int] = ...) -> None: ...

class Pcm(_message.Message):
    __slots__ = ("samples", "format", "sample_rate", "channels")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    samples: bytes
    format: SampleFormat
    sample_rate: int
    channels: int
    def __init__(self, samples: _Optional[bytes] = ..., format: _Optional[_Union[SampleFormat, str]] = ..., sample_rate: _Optional[int] = ..., channels: _Optional[int] = ...) -> None: ...

class RenderRequest(_message.Message):
    __slots__ = ("avatar", "pcm", "file", "format", "loop", "start_frame", "jpeg_quality")
    AVATAR_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    START_FRAME_FIELD_NUMBER: _ClassVar[int]
    JPEG_QUALITY_FIELD_NUMBER: _ClassVar[int]
    avatar: str
    pcm: Pcm
    file: bytes
    format: RenderFormat
    loop: str
    start_frame: int
    jpeg_quality: int
    def __init__(self, avatar: _Optional[str] = ..., pcm: _Optional[_Union[Pcm, _Mapping]] = ..., file: _Optional[bytes] = ..., format: _Optional[_Union[RenderFormat, str]] = ..., loop: _Optional[str] = ..., start_frame: _Optional[int] = ..., jpeg_quality: _Optional[int] = ...) -> None: ...

class RenderResponse(_message.Message):
    __slots__ = ("opened", "frames", "progress", "mp4")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MP4_FIELD_NUMBER: _ClassVar[int]
    opened: RenderOpened
    frames: Frames
    progress: RenderProgress
    mp4: bytes
    def __init__(self, opened: _Optional[_Union[RenderOpened, _Mapping]] = ..., frames: _Optional[_Union[Frames, _Mapping]] = ..., progress: _Optional[_Union[RenderProgress, _Mapping]] = ..., mp4: _Optional[bytes] = ...) -> None: ...

class RenderProgress(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: int
    def __init__(self, frames: _Optional[int] = ...) -> None: ...

class RenderOpened(_message.Message):
    __slots__ = ("width", "height", "fps_numerator", "fps_denominator", "frames")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FPS_NUMERATOR_FIELD_NUMBER: _ClassVar[int]
    FPS_DENOMINATOR_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    fps_numerator: int
    fps_denominator: int
    frames: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., fps_numerator: _Optional[int] = ..., fps_denominator: _Optional[int] = ..., frames: _Optional[int] = ...) -> None: ...

class Frames(_message.Message):
    __slots__ = ("first", "frames")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    first: int
    frames: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, first: _Optional[int] = ..., frames: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LiveRequest(_message.Message):
    __slots__ = ("open", "pcm", "flush", "interrupt")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_FIELD_NUMBER: _ClassVar[int]
    open: OpenSession
    pcm: bytes
    flush: Flush
    interrupt: Interrupt
    def __init__(self, open: _Optional[_Union[OpenSession, _Mapping]] = ..., pcm: _Optional[bytes] = ..., flush: _Optional[_Union[Flush, _Mapping]] = ..., interrupt: _Optional[_Union[Interrupt, _Mapping]] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("avatar", "sample_rate", "channels", "sample_format", "picture", "prebuffer", "clock", "start_frame", "loop", "jpeg_quality")
    AVATAR_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    PREBUFFER_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    START_FRAME_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    JPEG_QUALITY_FIELD_NUMBER: _ClassVar[int]
    avatar: str
    sample_rate: int
    channels: int
    sample_format: SampleFormat
    picture: Picture
    prebuffer: float
    clock: Clock
    start_frame: int
    loop: str
    jpeg_quality: int
    def __init__(self, avatar: _Optional[str] = ..., sample_rate: _Optional[int] = ..., channels: _Optional[int] = ..., sample_format: _Optional[_Union[SampleFormat, str]] = ..., picture: _Optional[_Union[Picture, str]] = ..., prebuffer: _Optional[float] = ..., clock: _Optional[_Union[Clock, str]] = ..., start_frame: _Optional[int] = ..., loop: _Optional[str] = ..., jpeg_quality: _Optional[int] = ...) -> None: ...

class Flush(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Interrupt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LiveResponse(_message.Message):
    __slots__ = ("opened", "piece", "event")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    opened: SessionOpened
    piece: Piece
    event: Event
    def __init__(self, opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("avatar", "width", "height", "fps_numerator", "fps_denominator", "sample_rate", "channels", "sample_format", "picture", "prebuffer", "clock", "sessions", "capacity")
    AVATAR_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FPS_NUMERATOR_FIELD_NUMBER: _ClassVar[int]
    FPS_DENOMINATOR_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    PREBUFFER_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    avatar: str
    width: int
    height: int
    fps_numerator: int
    fps_denominator: int
    sample_rate: int
    channels: int
    sample_format: SampleFormat
    picture: Picture
    prebuffer: float
    clock: Clock
    sessions: int
    capacity: int
    def __init__(self, avatar: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., fps_numerator: _Optional[int] = ..., fps_denominator: _Optional[int] = ..., sample_rate: _Optional[int] = ..., channels: _Optional[int] = ..., sample_format: _Optional[_Union[SampleFormat, str]] = ..., picture: _Optional[_Union[Picture, str]] = ..., prebuffer: _Optional[float] = ..., clock: _Optional[_Union[Clock, str]] = ..., sessions: _Optional[int] = ..., capacity: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("number", "time", "picture", "sound", "speaking", "utterance_end", "keyframe")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    SOUND_FIELD_NUMBER: _ClassVar[int]
    SPEAKING_FIELD_NUMBER: _ClassVar[int]
    UTTERANCE_END_FIELD_NUMBER: _ClassVar[int]
    KEYFRAME_FIELD_NUMBER: _ClassVar[int]
    number: int
    time: float
    picture: bytes
    sound: bytes
    speaking: bool
    utterance_end: bool
    keyframe: bool
    def __init__(self, number: _Optional[int] = ..., time: _Optional[float] = ..., picture: _Optional[bytes] = ..., sound: _Optional[bytes] = ..., speaking: bool = ..., utterance_end: bool = ..., keyframe: bool = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("underrun", "late", "skipped", "interrupted")
    UNDERRUN_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTED_FIELD_NUMBER: _ClassVar[int]
    underrun: Underrun
    late: Late
    skipped: Skipped
    interrupted: Interrupted
    def __init__(self, underrun: _Optional[_Union[Underrun, _Mapping]] = ..., late: _Optional[_Union[Late, _Mapping]] = ..., skipped: _Optional[_Union[Skipped, _Mapping]] = ..., interrupted: _Optional[_Union[Interrupted, _Mapping]] = ...) -> None: ...

class Underrun(_message.Message):
    __slots__ = ("total",)
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    total: int
    def __init__(self, total: _Optional[int] = ...) -> None: ...

class Late(_message.Message):
    __slots__ = ("total",)
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    total: int
    def __init__(self, total: _Optional[int] = ...) -> None: ...

class Skipped(_message.Message):
    __slots__ = ("total",)
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    total: int
    def __init__(self, total: _Optional[int] = ...) -> None: ...

class Interrupted(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: float
    def __init__(self, position: _Optional[float] = ...) -> None: ...
