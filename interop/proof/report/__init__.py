"""The report as people see it: in the terminal, and as one self-contained HTML page."""
