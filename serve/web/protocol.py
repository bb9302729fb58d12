"""WebSockets in uvicorn, with limits that it does not have."""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

MAX_MESSAGE = 8 << 20  # bytes: a minute of int16 at 48 kHz and more
MAX_FIRST = 1 << 18  # bytes of a message before the server has said something, so of strangers
MAX_FRAGMENTS = 1000  # of a message
MAX_UNREAD = 1 << 20  # bytes of answers to pings that a client does not read
ABORT_SECONDS = 10.0  # in which a client must read what was sent before the end


class WebSockets(WebSocketsSansIOProtocol):
    """A connection. Who breaks the rules is cut off, without a traceback in the log."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.conn.max_message_size = MAX_FIRST

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.send":
            self.conn.max_message_size = MAX_MESSAGE
        elif message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # else a refusal is logged as a fault of ours

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > MAX_UNREAD:
            self.transport.abort()
        else:
            super().handle_ping()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:  # which may be empty, and so no limit of bytes helps
            self._cut_off(CloseCode.MESSAGE_TOO_BIG)
        else:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._cut_off(CloseCode.INVALID_DATA)
                return
        super().send_receive_event_to_app()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # Closing waits until all is sent, which never happens if the client reads nothing.
        self.loop.call_later(ABORT_SECONDS, self.transport.abort)

    def _cut_off(self, code: int) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.send_close(code)
            self.handle_parser_exception()


# of `uvicorn.Config`
SETTINGS: dict[str, Any] = {
    "ws": WebSockets,
    "ws_max_size": MAX_MESSAGE,
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
    "ws_per_message_deflate": False,  # sound and pictures do not get smaller
}
