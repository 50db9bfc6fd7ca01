"""The census of session keys: whether, over many handshakes, any value comes twice.

`values` says what is counted and what is kept of it, `hellos` reads it off the wire, `conditions`
plans under which circumstances handshakes are made, `ends` and `sampling` make them in memory,
`workers` spreads that over processes, and `target` asks a live server. `tallies` counts in memory,
`stored` in Parquet files by DuckDB, and `report` says what the counts exclude, and what was not
tested.
"""
