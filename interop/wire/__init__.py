"""Reading TLS off the wire, without sockets, clocks or files."""
