"""Every row of a store's tables, read in an order in which they can be written again.

What a backup holds, and what a snapshot of a store in PostgreSQL copies. Rows come as plain values,
in the order of their table's columns; the reader is not to believe more of them than of the rows of
a database.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from certs.errors import InvalidInput
from certs.keystore.tables import authorities, damaged, metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection, Row, Table

__all__ = ["Values", "every_row", "write_rows"]

Values = tuple[object, ...]
_TOGETHER = 500
_TABLES = {table.name: table for table in metadata.sorted_tables}


def every_row(connection: Connection) -> Iterator[tuple[str, Values]]:
    """Yield every row with its table's name, in constant memory but for the authorities."""
    for table in metadata.sorted_tables:
        rows = _parents_first if table is authorities else _in_order
        for row in rows(connection, table):
            yield str(table.name), tuple(row)


def write_rows(connection: Connection, rows: Iterable[tuple[str, Sequence[object]]]) -> None:
    """Insert rows as `every_row` yields them; `InvalidInput` for what fits no table."""
    for name, group in groupby(rows, lambda row: row[0]):
        table = _TABLES.get(name)
        if table is None:
            raise InvalidInput("that holds a table which is not known here; upgrade the program")
        batch: list[dict[str, object]] = []
        for _, values in group:
            batch.append(_named(table, values))
            if len(batch) == _TOGETHER:
                connection.execute(insert(table), batch)
                batch = []
        if batch:
            connection.execute(insert(table), batch)


def _named(table: Table, values: Sequence[object]) -> dict[str, object]:
    if len(values) != len(table.c) or not all(
        value is None or isinstance(value, (int, str, bytes)) for value in values
    ):
        raise InvalidInput(f"a row of {table.name} has other columns; upgrade the program")
    return dict(zip((column.name for column in table.c), values, strict=True))


def _in_order(connection: Connection, table: Table) -> Iterator[Row[*tuple[object, ...]]]:
    query = select(table).order_by(*table.primary_key)
    # The option would stay with the connection, so it is given to the statement alone.
    with connection.execute(query, execution_options={"yield_per": _TOGETHER}) as rows:
        yield from rows


def _parents_first(connection: Connection, table: Table) -> Iterator[Row[*tuple[object, ...]]]:
    waiting = list(connection.execute(select(table).order_by(table.c.name)).all())
    done: set[object] = {None}
    while waiting:
        ready = [row for row in waiting if row.parent in done]
        if not ready:
            raise damaged("authorities.parent")
        yield from ready
        done.update(row.name for row in ready)
        waiting = [row for row in waiting if row.name not in done]
