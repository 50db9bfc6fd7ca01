"""What each command of ``pfs`` does, apart from how it is spelled on the command line.

A module a command, with one function `run` that returns the exit status. `interop.cli` imports a
module when its command is called, so that none pays for what another needs: the database and the
TLS library take longer to import than a small capture takes to read.
"""
