"""Who may ask the server: the guard in front of all routes, and the cookie that tells visitors apart.

request ─► Host: a name of ours?           (a page of another site whose name was made to point here is turned away)
        ─► Origin, Sec-Fetch-Site: ours?   (a page of another site can neither ask nor index)
        ─► token, where one is set         (as Bearer, or in exchange for a cookie)
        ─► X-Rsgrpo on what changes something under /api
        ─► the application; its reply gets the headers that keep a browser from doing more than the page needs
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recipes.serving.refusals import RefusedError, error_response
from rsgrpo.errors import shown

OWN_HEADER = "X-Rsgrpo"
"""A header that pages of other sites cannot send without asking the browser's leave, which nobody gives."""
LOGIN_PATH = "/api/login"

_COOKIE_SECONDS = 400 * 24 * 3600  # the longest that browsers keep one
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_OPEN_PATHS = frozenset({"/", "/health", LOGIN_PATH})
_ASSETS = "/assets/"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Visitor:
    """Whoever sends a request.

    Attributes:
        name: tells visitors apart: of a browser a digest of its cookie, else the address that it comes from.
        has_session: whether there is a cookie, so that documents and history can be the visitor's own.
    """

    name: str
    has_session: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessRules:
    """Who may ask.

    Attributes:
        secret: the key by which cookies are signed; it must stay the same for visitors to stay the same.
        hosts: the names beside those of the loopback by which browsers may call the server.
        is_loopback: whether only this machine reaches the server.
        token: what visitors must know; empty: nothing.
    """

    secret: bytes
    hosts: frozenset[str] = field(default_factory=frozenset)
    is_loopback: bool = True
    token: str = ""

    @property
    def cookie_name(self) -> str:
        """The cookie's name; browsers do not tell ports apart, so each server has its own."""
        return f"rsgrpo_{hashlib.sha256(b'name' + self.secret).hexdigest()[:8]}"

    def new_cookie(self) -> str:
        """Make the cookie of a new visitor."""
        name = secrets.token_urlsafe(24)
        return f"{name}.{self._signature(name)}"

    def visitor_of(self, cookie: str) -> str | None:
        """Read who a cookie is of.

        Args:
            cookie: the cookie's value.

        Returns:
            The visitor's name; None: the cookie is not from here, or from before the token was changed.
        """
        name, _, signature = cookie.rpartition(".")
        if not name or not _is_same(signature, self._signature(name)):
            return None
        return hashlib.sha256(b"visitor" + name.encode()).hexdigest()[:24]

    def is_token(self, given: str) -> bool:
        """Whether a text is the token; takes as long whatever the text is.

        Args:
            given: the text.
        """
        return bool(self.token) and _is_same(given, self.token)

    def _signature(self, name: str) -> str:
        key = hashlib.sha256(self.secret + self.token.encode()).digest()
        return hmac.new(key, name.encode(), hashlib.sha256).hexdigest()


class Guard:
    """The guard in front of the application; sets ``scope["state"]["visitor"]``.

    Args:
        app: the application behind it.
        rules: who may ask.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            visitor, cookie = self._admitted(scope)
        except RefusedError as error:
            await error_response(str(error), error.status)(scope, receive, send_guarded)
            return
        scope.setdefault("state", {})
        scope["state"]["visitor"] = visitor

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and cookie:
                MutableHeaders(scope=message).append("Set-Cookie", cookie_header(self._rules, cookie))
            await send_guarded(message)

        await self._app(scope, receive, send_with_cookie)

    def _admitted(self, scope: Scope) -> tuple[Visitor, str]:
        """Check a request.

        Returns:
            Who sends it, and a cookie to set; empty: there is one already, or none is needed.

        Raises:
            RefusedError: it may not pass.
        """
        headers = Headers(scope=scope)
        path = scope["path"]
        is_static = path == "/" or path.startswith(_ASSETS)
        self._check_host(headers.get("host", ""))
        if not (is_static and scope["method"] in _SAFE_METHODS):
            _check_site(headers)
        if path.startswith("/api/") and scope["method"] not in _SAFE_METHODS and not headers.get(OWN_HEADER):
            raise RefusedError(f"a request that changes something needs the header {OWN_HEADER}: 1; add it", 403)
        name = self._rules.visitor_of(_cookie(headers, self._rules.cookie_name))
        needs_token = bool(self._rules.token) and not (is_static or path in _OPEN_PATHS)
        if needs_token and name is None and not self._rules.is_token(_bearer(headers)):
            raise RefusedError("this server asks for a token; send it as Authorization: Bearer TOKEN", 401)
        if name is not None:
            return Visitor(name=name, has_session=True), ""
        client = scope.get("client")
        unknown = Visitor(name=f"at {client[0] if client else 'an unknown address'}", has_session=False)
        return unknown, self._rules.new_cookie() if path == "/" and not self._rules.token else ""

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if name in self._rules.hosts or name == "localhost":
            return
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            raise RefusedError(
                f"the server is not called {shown(name, 80)!r}; call it by its address, or name it by --allow-host", 421
            ) from None
        if self._rules.is_loopback and not address.is_loopback:
            raise RefusedError(f"the server is not at {shown(name, 80)}; call it at 127.0.0.1", 421)


def cookie_header(rules: AccessRules, cookie: str) -> str:
    """Make the header that sets a visitor's cookie.

    Args:
        rules: who may ask.
        cookie: the cookie's value.
    """
    return f"{rules.cookie_name}={cookie}; Path=/; Max-Age={_COOKIE_SECONDS}; HttpOnly; SameSite=Strict"


def _check_site(headers: Headers) -> None:
    """Refuse what a page of another site sends.

    Raises:
        RefusedError: such a page sends it.
    """
    site = headers.get("sec-fetch-site", "none")
    origin = headers.get("origin")
    is_other = site not in ("same-origin", "none")
    if origin is not None:
        try:
            parts = urlsplit(origin)
        except ValueError:  # such as http://[
            is_other = True
        else:
            is_other = is_other or parts.scheme not in ("http", "https") or parts.netloc != headers.get("host", "")
    if is_other:
        raise RefusedError("a page of another site may not use this server; open the server's own page", 403)


def _host_name(host: str) -> str:
    name = host.lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]


def _cookie(headers: Headers, name: str) -> str:
    # Not http.cookies, which stops at the first cookie that it cannot read: other programs of the same host set some.
    return cookie_parser("; ".join(headers.getlist("cookie"))).get(name, "")


def _bearer(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _is_same(given: str, expected: str) -> bool:
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (given, expected)]
    return hmac.compare_digest(*digests)
