"""Our endpoints where a framework brings its own sockets: each module serves one of them.

`transport.adapters.ssl_context` is what the others stand on: an `ssl.SSLContext` whose connections
are made by our engine. Modules named for a framework import it; `import transport` imports none.
"""

from __future__ import annotations

__all__: list[str] = []
