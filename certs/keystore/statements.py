"""The statements by which keys are found and inserted.

They are built once: building a statement takes twice as long as running it. What their rows hold is
believed only after `certs.keystore.records` has looked at it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Integer,
    and_,
    bindparam,
    func,
    insert,
    literal,
    select,
    update,
)

from certs.keystore.tables import key_states, key_versions, keys, terms

__all__ = [
    "COUNT_SEALS",
    "KEYS_AFTER",
    "KEY_AND_VERSION",
    "NEWEST_TERM",
    "NEW_KEY",
    "NEW_STATE",
    "NEW_VERSION",
    "ONE_KEY",
    "ONE_VERSION",
]

NEW_KEY = insert(keys)
NEW_STATE = insert(key_states)
NEW_VERSION = insert(key_versions)

NEWEST_TERM = select(terms).order_by(terms.c.number.desc()).limit(1).with_for_update()
# The newest term with some more invocations counted; no row if it has not so many left.
COUNT_SEALS = (
    update(terms)
    .where(
        terms.c.number == select(func.max(terms.c.number)).scalar_subquery(),
        terms.c.invocations <= bindparam("most", type_=BigInteger),
    )
    .values(invocations=terms.c.invocations + bindparam("seals", type_=BigInteger))
    .returning(terms.c.number, terms.c.sealed, terms.c.invocations)
)
# Outer joins: a key whose state was removed is a damaged key, not one that never was.
_ALL_KEYS = (
    select(
        keys,
        key_states.c.revision,
        key_states.c.term,
        key_states.c.sealed.label("state"),
        terms.c.sealed.label("sealed_term"),
    )
    .outerjoin(key_states, key_states.c.name == keys.c.name)
    .outerjoin(terms, terms.c.number == key_states.c.term)
)
ONE_KEY = _ALL_KEYS.where(keys.c.name == bindparam("wanted"))
KEYS_AFTER = (
    _ALL_KEYS.where(keys.c.name > bindparam("last"))
    .order_by(keys.c.name)
    .limit(bindparam("most", type_=Integer))
)
_wanted_version = key_versions.alias("wanted_version")
_its_term = terms.alias("its_term")
_VERSION_COLUMNS = (
    *(column.label(f"v_{column.name}") for column in _wanted_version.c),
    _its_term.c.sealed.label("v_sealed_term"),
    select(func.max(key_versions.c.version))
    .where(key_versions.c.name == bindparam("wanted"))
    .scalar_subquery()
    .label("newest"),
)
_number = bindparam("number", type_=BigInteger)
KEY_AND_VERSION = (
    ONE_KEY.add_columns(*_VERSION_COLUMNS)
    .outerjoin(
        _wanted_version,
        and_(
            _wanted_version.c.name == bindparam("wanted"),
            _wanted_version.c.version == func.coalesce(_number, keys.c.latest_version),
        ),
    )
    .outerjoin(_its_term, _its_term.c.number == _wanted_version.c.term)
)
# One row whether or not the version is there: it also says which is the newest.
ONE_VERSION = (
    select(*_VERSION_COLUMNS)
    .select_from(select(literal(1).label("one")).subquery())
    .outerjoin(
        _wanted_version,
        and_(_wanted_version.c.name == bindparam("wanted"), _wanted_version.c.version == _number),
    )
    .outerjoin(_its_term, _its_term.c.number == _wanted_version.c.term)
)
