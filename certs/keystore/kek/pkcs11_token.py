"""One lock a PKCS #11 module, one login a token: how this process talks to tokens.

*The lock.* PKCS #11 lets an application call a module from several threads, and modules get it
wrong: SoftHSM 2.6.1 crashes under concurrent calls. So all calls into one module, whichever
provider makes them, happen under that module's one lock. What a call returns lazily (a search) is
read to its end before the lock is left. A module is known by the file it really is: two names of
one file share one lock.

*The login.* A login belongs to the application and the token, not to a session: a second one is an
error, and closing the session of the first logs out whoever else was in. So a token has one login
session in a process, shared by those who opened it and closed by the last of them. A later one must
bring the same PIN, although the token, being logged in, would not ask for it.

*Fork.* A child may not use its parent's sessions (PKCS #11 3.0, 2.5), and a lock that another
thread held stays held. In a child all is forgotten: what was opened before says so, and a module
that is opened again is initialised again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pkcs11
from pkcs11 import exceptions as token_errors

from certs.errors import KEKUnavailable, StoreError, StoreFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["TokenUse", "use_token"]

_NEXT_STEPS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (token_errors.PinIncorrect, token_errors.PinInvalid, token_errors.PinLenRange),
        "the PIN is wrong; give the right one, since a token locks itself after some wrong ones",
    ),
    ((token_errors.PinLocked,), "its PIN is locked; have its security officer set a new one"),
    ((token_errors.PinExpired,), "its PIN has expired; set a new one with the token's own tool"),
    (
        (token_errors.UserPinNotInitialized,),
        "it has no user PIN yet; set one with the token's own tool",
    ),
    (
        (token_errors.UserAlreadyLoggedIn, token_errors.AnotherUserAlreadyLoggedIn),
        "another part of this program is logged in to it; log out there",
    ),
    (
        (
            token_errors.TokenNotPresent,
            token_errors.TokenNotRecognised,
            token_errors.DeviceRemoved,
            token_errors.DeviceError,
            token_errors.SlotIDInvalid,
        ),
        "it is not there; connect it, and open the KEK again",
    ),
    (
        (
            token_errors.SessionClosed,
            token_errors.SessionHandleInvalid,
            token_errors.UserNotLoggedIn,
            token_errors.ObjectHandleInvalid,
            token_errors.KeyHandleInvalid,
        ),
        "its session has ended; open the KEK again",
    ),
)


class _Module:
    """A loaded module: its lock, and the logins of this process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.logins: dict[tuple[str, bytes], _Login] = {}


class _Login:
    """The one login session of a token, how many use it, and what recognises its PIN."""

    def __init__(self, token: pkcs11.Token, session: pkcs11.Session, pin: str) -> None:
        self.token = token
        self.session = session
        self.users = 1
        self._salt = secrets.token_bytes(32)
        self._digest = self._recognise(pin)

    def has_pin(self, pin: str) -> bool:
        return hmac.compare_digest(self._digest, self._recognise(pin))

    def _recognise(self, pin: str) -> bytes:
        return hmac.digest(self._salt, pin.encode(), hashlib.sha256)


_modules: dict[str, _Module] = {}
_modules_lock = threading.Lock()
_inherited: set[str] = set()  # modules that a parent process initialised


def _forget_in_child() -> None:
    global _modules_lock  # noqa: PLW0603 - the parent's lock may be held by a thread that is gone
    _modules_lock = threading.Lock()
    _inherited.update(_modules)
    _modules.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class TokenUse:
    """One user of a token that is logged in. All that touches the token goes through `call`."""

    def __init__(self, module: _Module, login: _Login) -> None:
        self._module = module
        self._login: _Login | None = login
        self._process = os.getpid()

    @contextmanager
    def call(self, doing: str) -> Iterator[pkcs11.Session]:
        """Yield the login session under the module's lock; `doing` completes "cannot …".

        Raises `KEKUnavailable` for what goes wrong in the token, `StoreError` once this is closed.
        """
        if self._process != os.getpid():
            raise StoreError(
                "the KEK was opened before this process was forked; open it again here",
                fault=StoreFault.CLOSED,
            )
        with self._module.lock:
            if self._login is None:
                raise StoreError("the KEK was closed; open it again", fault=StoreFault.CLOSED)
            with _told(doing):
                yield self._login.session

    @contextmanager
    def writing(self, doing: str) -> Iterator[pkcs11.Session]:
        """Yield a session that may make objects which stay in the token."""
        with self.call(doing) as session:
            writer = session.token.open(rw=True)
            try:
                yield writer
            finally:
                with contextlib.suppress(token_errors.PKCS11Error):
                    writer.close()

    def mechanisms(self) -> frozenset[int]:
        """Return the numbers of the mechanisms that the token has."""
        with self.call("ask the token for its mechanisms") as session:
            return frozenset(int(mechanism) for mechanism in session.token.slot.get_mechanisms())

    def close(self) -> None:
        """Leave the token; whoever leaves last logs out."""
        if self._process != os.getpid():
            self._login = None
            return
        with self._module.lock:
            login, self._login = self._login, None
            if login is None:
                return
            login.users -= 1
            if login.users == 0:
                self._module.logins.pop(_key_of(login.token), None)
                with contextlib.suppress(token_errors.PKCS11Error):
                    login.session.close()


def use_token(
    module_path: str, attributes: Mapping[str, str], read_pin: Callable[[str], bytes]
) -> TokenUse:
    """Log in to the one token that has these attributes (names of RFC 7512, 2.3).

    `read_pin`, given the token's label, returns the user PIN. Raises `KEKUnavailable` if the module
    does not load, no token or several have the attributes, or the login fails.
    """
    module = _module_at(module_path)
    with module.lock, _alone(module.path):
        token = _find_token(module, attributes)
        label = token.label
    try:
        pin = read_pin(label).decode()  # outside of the lock: a person may be asked
    except UnicodeDecodeError:
        raise KEKUnavailable("a PIN is text in UTF-8; write it so") from None
    with module.lock, _alone(module.path), _told("log in to the token"):
        login = module.logins.get(_key_of(token))
        if login is not None:
            if not login.has_pin(pin):
                raise KEKUnavailable(f"cannot log in to the token: {_NEXT_STEPS[0][1]}")
            login.users += 1
            return TokenUse(module, login)
        login = _Login(token, token.open(user_pin=pin), pin)
        module.logins[_key_of(token)] = login
        return TokenUse(module, login)


@contextmanager
def _alone(module_path: str) -> Iterator[None]:
    """Keep other processes of ours out while a module starts or logs in.

    A login of SoftHSM writes to the token's files, and a module that reads them at that moment
    lacks the token or fails without a reason. The lock is on the module's own file, which every
    user of it can open; one that cannot be locked is used without.
    """
    try:
        descriptor = os.open(module_path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield  # loading it says what is wrong
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _module_at(path: str) -> _Module:
    real = os.path.realpath(path)
    with _modules_lock:
        module = _modules.get(real)
        if module is None:
            module = _modules[real] = _Module(real)
        return module


def _find_token(module: _Module, attributes: Mapping[str, str]) -> pkcs11.Token:
    with _told(f"use the PKCS #11 module {module.path}"):
        library = pkcs11.lib(module.path)
        if module.path in _inherited:
            library.reinitialize()
            _inherited.discard(module.path)
        described = {
            "library-manufacturer": str(library.manufacturer_id),
            "library-description": str(library.library_description),
            "library-version": ".".join(map(str, library.library_version)),
        }
        found = [
            slot.get_token()
            for slot in library.get_slots(token_present=True)
            if _matches(slot, described, attributes)
        ]
    if len(found) != 1:
        raise KEKUnavailable(
            f"{len(found) or 'no'} tokens of {module.path} fit the KEK URI and one must; "
            "name it by token=LABEL or serial=NUMBER, as its own tool lists it"
        )
    return found[0]


def _matches(
    slot: pkcs11.Slot, described: Mapping[str, str], attributes: Mapping[str, str]
) -> bool:
    token = slot.get_token()
    if not token.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED:
        return False
    has = {
        **described,
        "token": token.label,
        "manufacturer": token.manufacturer_id,
        "serial": token.serial.rstrip(b" \0").decode("utf-8", "replace"),
        "model": token.model,
        "slot-manufacturer": slot.manufacturer_id,
        "slot-description": slot.slot_description,
        "slot-id": str(slot.slot_id),
    }
    return all(has[name] == value for name, value in attributes.items())


def _key_of(token: pkcs11.Token) -> tuple[str, bytes]:
    return (token.label, token.serial)


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """Turn what a token reports into one line that says what to do."""
    try:
        yield
    except token_errors.PKCS11Error as error:
        for kinds, step in _NEXT_STEPS:
            if isinstance(error, kinds):
                raise KEKUnavailable(f"cannot {doing}: {step}") from None
        # Only PKCS11Error itself, which the loader raises, has a text; the others are their names.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise KEKUnavailable(
            f"cannot {doing}: {reason}; see the log of the token's own software"
        ) from None
