"""The server as its user sees it: settings, `Server`, and what a handler gets.

A minimal one, in a script's main thread::

    async def handle(stream: TLSStream, client: Client) -> None:
        while not client.draining:
            with client.idle():
                data = await stream.read(65536)
            if not data:
                return
            await stream.send_all(data)

    files = CredentialFiles(Path("server.pem"), Path("server.key"))
    settings = ServerSettings(handler=handle, credentials=(ServedCredential(files),), workers=2)
    Server(settings, [("127.0.0.1", 8443)]).run()

Where things are: the supervisor and its processes in `transport.server_workers`, one worker in
`transport.server_worker`, its engines in `transport.server_engine` (asyncio) and
`transport.server_threads` (blocking), limits in `transport.server_limits`, credentials in
`transport.credentials`, log and metrics in `transport.server_events`. `ServerEngine` alone is for
programs that have an event loop already and want no processes.
"""

from __future__ import annotations

from transport.credentials import (
    CredentialFiles,
    LiveIdentity,
    ServedCredential,
    UnknownName,
)
from transport.server_engine import ServerEngine
from transport.server_events import Meter, NoMeter, ServerEvents
from transport.server_limits import Limits, Refusal
from transport.server_log import EventLog, JSONLinesLog, SilentLog
from transport.server_settings import (
    Authorize,
    BlockingHandler,
    Client,
    Engine,
    Handler,
    ServerSettings,
)
from transport.server_threads import ThreadedEngine
from transport.server_workers import Supervisor as Server

__all__ = [
    "Authorize",
    "BlockingHandler",
    "Client",
    "CredentialFiles",
    "Engine",
    "EventLog",
    "Handler",
    "JSONLinesLog",
    "Limits",
    "LiveIdentity",
    "Meter",
    "NoMeter",
    "Refusal",
    "ServedCredential",
    "Server",
    "ServerEngine",
    "ServerEvents",
    "ServerSettings",
    "SilentLog",
    "ThreadedEngine",
    "UnknownName",
]
