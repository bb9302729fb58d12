"""The message that opens a session over a WebSocket."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.errors import InputError, shortened
from engine.live.live import PREBUFFER

from ..config_file import validated
from ..refused import Refused
from ..rpc.calls import Refused as RpcRefused
from ..rpc.protos import viseme_pb2 as pb
from ..rpc.sound import SoundFormat

FORMATS = {"s16": pb.SAMPLE_FORMAT_S16, "f32": pb.SAMPLE_FORMAT_F32}


class Open(BaseModel):
    """What a client wants of a session.

    Attributes:
        avatar: its name; None for the address's, or the first one of the server.
        token: instead of the header Authorization, which browsers cannot send.
        sample_rate, channels, sample_format: of the sound, in both directions.
        prebuffer, clock: as in `engine.live.Live.open`.
        picture: what comes back over this connection.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    type: Literal["open"]
    avatar: str | None = None
    token: str | None = Field(None, repr=False)
    sample_rate: int = 48000
    channels: int = 1
    sample_format: Literal["s16", "f32"] = "s16"
    prebuffer: float = PREBUFFER
    clock: Literal["wall", "taken"] = "wall"
    picture: Literal["none", "jpeg", "h264"] = "none"

    def sound(self) -> SoundFormat:
        """Return the format of the sound.

        Raises:
            Refused: the rate or the number of channels is out of range.
        """
        if self.sample_rate <= 0 or self.channels <= 0:  # gRPC's defaults
            line = f"sample_rate is {self.sample_rate}, channels is {self.channels}"
            raise Refused(400, f"{line}; expected positive numbers")
        try:
            return SoundFormat(FORMATS[self.sample_format], self.sample_rate, self.channels)
        except RpcRefused as error:
            raise Refused(400, error.line) from None


def read_open(message: dict[str, Any]) -> Open:
    """Read a client's first message.

    Raises:
        Refused: a key that nobody knows, or a value that cannot be used.
    """
    if message.get("type") != "open":
        kind = shortened(message.get("type"))
        raise Refused(400, f"the first message is of type {kind}; expected 'open'")
    for key in message:
        if key not in Open.model_fields:
            expected = ", ".join(Open.model_fields)
            raise Refused(400, f"{shortened(key)} is not known; expected: {expected}")
    try:
        return validated(Open, message, lambda _, line: InputError(line))
    except InputError as error:
        raise Refused(400, error) from None
