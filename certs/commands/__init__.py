"""What the commands of ``pfs`` on keys do. How they are spelled is in ``interop.cli.keys``."""
