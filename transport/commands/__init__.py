"""What the ``pfs`` commands of this package do; how they are spelled is `interop.cli`'s affair."""
