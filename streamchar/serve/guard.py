"""Who may talk to the server, and how often."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from streamchar.errors import ConfigError
from streamchar.serve.protocol import ProtocolError

MIN_TOKEN = 8


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Token, host and origin. Raises `ConfigError` for a server that anybody could use."""

    host: str
    token: str = ""

    def __post_init__(self) -> None:
        if self.token and len(self.token) < MIN_TOKEN:
            raise ConfigError(f"--token must have at least {MIN_TOKEN} characters, got {len(self.token)}")
        if not self.token and not is_loopback(self.host):
            raise ConfigError(f"--host {self.host} can be reached by others: give a --token, or serve on 127.0.0.1")

    def check(self, headers: Mapping[str, str], query_token: str = "") -> None:
        """Raise `ProtocolError` "forbidden" unless the request may come in.

        A browser says where its page comes from: that must be this server. Without a token the name by which it
        was reached must be of this machine too, or any page could reach it under a name of its own.
        """
        own = headers.get("host", "")
        if not self.token and not is_loopback(_name(own)):
            raise ProtocolError("forbidden", f"this server does not answer as {own[:60]!r}", "use localhost")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != own.lower():
            raise ProtocolError("forbidden", f"pages of {origin[:60]!r} may not use this server", "open its own page")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ProtocolError("forbidden", "other sites may not use this server", "open its own page")
        if self.token:
            kind, _, given = headers.get("authorization", "").partition(" ")
            given = given if kind.lower() == "bearer" else query_token
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise ProtocolError("forbidden", "the token is missing or wrong", "use the server's own link")


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] or host


class Bucket:
    """`rate` messages a second, and as many more at once."""

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._now = rate, now
        self._left, self._stamp = 2 * rate, now()

    def take(self) -> None:
        """Count one; raises `ProtocolError` "rate" when there are too many."""
        now = self._now()
        self._left = min(2 * self._rate, self._left + (now - self._stamp) * self._rate)
        self._stamp = now
        if self._left < 1:
            raise ProtocolError("rate", f"at most {self._rate:g} messages a second", "send fewer")
        self._left -= 1
