"""A server that records a session until it is killed: tests run this as a program.

It takes the avatar's folder and the one of recordings, and says when a recording has begun.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np

from engine import Avatar
from engine.live import Live
from tests.serve.web.site import client, serving


async def main() -> None:
    avatar, folder = map(Path, sys.argv[1:])
    with Live(Avatar.load(avatar), precision="fp32") as live:
        async with (
            serving(live, web={"recordings": folder}) as site,
            client(site, sample_rate=48000, clock="taken") as talk,
        ):
            session = site.sessions.find(talk.opened["session"])
            site.recordings.start(session)
            while True:
                await talk.push(np.full(4800, 5000, np.int16))
                print(site.recordings.find(str(session.id)).size, flush=True)
                await asyncio.sleep(0.1)


asyncio.run(main())
