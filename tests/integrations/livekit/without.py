"""Asks a server that has no livekit-agents, in a process of its own."""

from types import SimpleNamespace

import httpx
from starlette.applications import Starlette

from serve.config import Config
from serve.web import livekit
from serve.web.gate import Gate


async def ask(body: dict) -> None:
    config = Config.model_validate({"web": {"livekit_urls": (body["livekit_url"],)}})
    application = Starlette(routes=livekit.routes(SimpleNamespace(config=config), Gate(config)))
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.post("/livekit/sessions", json=body)
    print(answer.status_code, answer.text, end="")
