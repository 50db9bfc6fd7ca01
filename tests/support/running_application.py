"""uvicorn over our TLS, in a thread; its application keeps the scopes it is called with."""

from __future__ import annotations

import socket
import threading
from typing import Any, Self

import uvicorn

from transport.adapters.uvicorn import TLSConfig

DEADLINE_SECONDS = 20.0


class RunningApplication:
    """uvicorn in a thread, telling each client what the scope says of TLS."""

    def __init__(self, **options: Any) -> None:
        self.config = TLSConfig(
            self._application, interface="asgi3", lifespan="off", log_level="error", **options
        )
        self._server = uvicorn.Server(self.config)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self.scopes: list[Any] = []
        self.url = f"https://localhost:{self._listener.getsockname()[1]}/"

    async def _application(self, scope: Any, _receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(DEADLINE_SECONDS)
        self._listener.close()
        assert not self._thread.is_alive()
