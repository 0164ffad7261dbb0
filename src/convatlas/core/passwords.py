"""Passwords in addresses: kept in the environment alone, and left out of whatever is shown or written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote, unquote

__all__ = ["Address", "hide_passwords", "split_address", "without_password"]

USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"  # MLflow's own names

HIDDEN = "***"

# A password may hold a slash or an at sign that its writer did not escape, so it reaches to the last at sign.
_USER_AND_PASSWORD = re.compile(r"(?<=://)(?P<user>[^\s:/?#@]*):(?P<password>\S*)@")
_TOKEN = re.compile(r"(?P<scheme>https?://)(?P<token>[^\s:/?#@]+)@")
_OPTION = re.compile(r"([?&][^=&\s]*(?:passw|pwd|secret|token|key|auth|cred|sig)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)
_PASSWORD_OPTION = re.compile(r"([?&])(?:password|passwd|pwd)=([^&\s]*)(&?)", re.IGNORECASE)  # as SQLAlchemy takes it


class Address(NamedTuple):
    """An address apart from the user and the password in it, both as they are before they are escaped."""

    rest: str
    user: str
    password: str

    @property
    def whole(self) -> str:
        """The address with its user and password."""
        scheme, separator, rest = self.rest.partition("://")
        secret = f":{quote(self.password, safe='')}" if self.password else ""
        return f"{scheme}{separator}{quote(self.user, safe='')}{secret}@{rest}" if self.user or secret else self.rest

    @property
    def shown(self) -> str:
        """The address without its password; that of a server without its user, too, which may be a token."""
        return _masked(self.rest if self.rest.startswith("http") else self._replace(password="").whole)


def without_password(text: str) -> str:
    """Return a text as it may be shown: `***` in place of the passwords of the addresses in it."""
    text = _USER_AND_PASSWORD.sub(rf"\g<user>:{HIDDEN}@", text)
    return _masked(_TOKEN.sub(rf"\g<scheme>{HIDDEN}@", text))


def _masked(text: str) -> str:
    return _OPTION.sub(rf"\1{HIDDEN}", text)


def split_address(address: str) -> Address:
    """Take user and password out of an address."""
    if found := _PASSWORD_OPTION.search(address):
        inner = split_address(address[: found.start()] + (found[1] if found[3] else "") + address[found.end() :])
        return inner._replace(password=inner.password or ("" if found[2] == HIDDEN else unquote(found[2])))
    if found := _USER_AND_PASSWORD.search(address):
        rest = address[: found.start()] + address[found.end() :]
        password = "" if found["password"] == HIDDEN else unquote(found["password"])
        return Address(rest, unquote(found["user"]), password)
    if found := re.match(r"([\w+.-]+://)([^\s:/?#@]+)@", address):
        return Address(found[1] + address[found.end() :], unquote(found[2]), "")
    return Address(address, "", "")


def hide_passwords(arguments: Iterable[str]) -> list[str]:
    """Return the arguments of a command line, the password of a tracking store moved to the environment.

    Whatever is made of the arguments (a configuration, a plan, the command in a run's files) then has no password.
    """
    return [_hidden(argument) if "tracking.uri=" in argument else argument for argument in arguments]


def _hidden(argument: str) -> str:
    before, key, address = argument.rpartition("tracking.uri=")
    found = split_address(address.strip("'\""))
    if not found.password:
        return argument
    os.environ[USERNAME], os.environ[PASSWORD] = found.user, found.password
    return before + key + address.replace(address.strip("'\""), found.shown)
