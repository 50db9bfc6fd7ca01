"""What the commands of the proof do, apart from how they are spelled (`interop.cli`).

A module a command, with one function `run` that returns the exit status.
"""
