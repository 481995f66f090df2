"""Who may look at the dashboard, and who may act.

There are two tokens, each made from a FURL: whoever holds the FURL can make it,
and it stays good as long as the FURL does. The one of the multiengine FURL may
act; the one of the view FURL may look.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from twisted.web.server import Request

Right = Literal["act", "look"]
#: The FURL behind each right.
RIGHTS: Mapping[Right, str] = {"act": "multiengine", "look": "view"}
#: How browsers on this machine, or through ``ssh -L``, may call it: any other
#: name is one that somebody had point here, to have a page of theirs read ours.
HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_PURPOSE = b"ipython1 dashboard"


def token_of(furl: str) -> str:
    """The token that belongs to a FURL: 32 characters, from which the FURL cannot be found."""
    secret = furl.strip().rpartition("/")[2].encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, _PURPOSE, "sha256")[:24]).decode()


class Guard:
    """Knows the tokens.

    Parameters
    ----------
    furls : mapping
        The FURLs by kind.
    """

    def __init__(self, furls: Mapping[str, str]) -> None:
        self.tokens: dict[Right, str] = {right: token_of(furls[kind]) for right, kind in RIGHTS.items()}

    def called_rightly(self, request: Request) -> bool:
        """Whether the name by which this server was called is one of its own."""
        return _host(request.getHeader("host") or "").lower() in HOSTS

    def right(self, request: Request) -> Right | None:
        """What whoever asks may do.

        The token comes in the query, where it becomes a cookie; in that cookie;
        or in the header ``Authorization: Bearer``.
        """
        # Cookies of one host are shared among its ports, hence the port in the name.
        cookie = f"ipython1-{request.getHost().port}"
        asked: list[bytes] = request.args.get(b"token", [])
        if len(asked) == 1:
            right = self._right(asked[0])
            if right is not None:
                request.addCookie(cookie, self.tokens[right], path="/", httpOnly=True, sameSite="strict")
            return right
        kind, _, given = (request.getHeader("authorization") or "").partition(" ")
        if kind.lower() == "bearer":
            return self._right(given.strip().encode())
        kept = request.getCookie(cookie.encode())
        return self._right(kept) if kept is not None and not asked else None

    def may_act(self, request: Request) -> bool:
        """Whether a request that changes something comes from one who may, and from a page of ours."""
        if self.right(request) != "act":
            return False
        origin = request.getHeader("origin")
        if origin is None:  # no browser; and what a browser adds by itself, a cookie, is not enough
            return request.getHeader("authorization") is not None
        return urlsplit(origin).netloc.lower() == (request.getHeader("host") or "").lower()

    def _right(self, token: bytes) -> Right | None:
        found: Right | None = None
        for right, known in self.tokens.items():
            if hmac.compare_digest(token, known.encode()):
                found = right
        return found


def _host(called: str) -> str:
    """The name in a ``Host`` header, without the port."""
    name, colon, port = called.rpartition(":")
    return name if colon and port.isdecimal() else called
