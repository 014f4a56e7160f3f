"""Who is let in at the page's port, and what every answer says to browsers.

A browser carries whatever any site asks it to. So the port answers only under its own name (another's name that points here,
DNS rebinding, gets nothing), never to a request that another site has caused, and to calls only with the token in the
Authorization header, which no site but the page itself can put there. The page's files are no secret.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from cryptography import x509

from memory_store.errors import PkmError, UsageError
from service.jobs.cluster import ClusterUnreachableError
from service.jobs.errors import JobConflictError, NoSuchJobError
from service.jobs.tokens import Tokens
from service.web.calls import TENANT

CALLS_MAX = 64  # of one tenant at a time: others must find room beside him
_CALL_S = 30.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Server": "pkm",
}
_STATUSES: tuple[tuple[type[PkmError], int], ...] = (
    (NoSuchJobError, 404),
    (JobConflictError, 409),
    (ClusterUnreachableError, 409),
    (UsageError, 400),
)

_log = logging.getLogger(__name__)


def names_of(certificate: Path | None) -> frozenset[str]:
    """The names under which the port is asked: those of its certificate; without one, this machine's own for itself."""
    if certificate is None:
        return frozenset(_LOOPBACK)
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError) as error:
        raise UsageError(f"The certificate {certificate} can't be read: {error}.") from None
    except x509.ExtensionNotFound:
        raise UsageError(
            f"The certificate {certificate} names no host (subjectAltName), so that no browser accepts it; make another."
        ) from None
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return frozenset(map(str.lower, names.get_values_for_type(x509.DNSName))) | frozenset(addresses)


class Door:
    """The middleware of the port: `names` are the hosts under which it is asked, `scheme` is http or https."""

    def __init__(self, tokens: Tokens, names: frozenset[str], scheme: str) -> None:
        self._tokens, self._names, self._scheme = tokens, names, scheme
        self._calls: Counter[str] = Counter()

    def middleware(self) -> Middleware:
        @web.middleware
        async def pass_through(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await self._answer(request, handler)
            response.headers.update(_HEADERS)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return pass_through

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._asks_for_us(request.host):
            return refusal(421, "This address is not one of the service; open the page with pkm ui.")
        if not self._comes_from_us(request):
            return refusal(403, "Another site has asked; only the page of the service itself may.")
        try:
            if not request.path.startswith("/api/"):
                return await handler(request)
            given = [("authorization", value) for value in request.headers.getall("Authorization", [])]
            tenant = self._tokens.tenant_of(given)
            if tenant is None:
                return refusal(401, "The service does not know this token; open the page with pkm ui.")
            return await self._call(request, handler, tenant)
        except web.HTTPException as error:
            return refusal(error.status, f"{error.reason}.")

    async def _call(self, request: web.Request, handler: Handler, tenant: str) -> web.StreamResponse:
        if self._calls[tenant] >= CALLS_MAX:
            return refusal(429, f"{CALLS_MAX} calls of yours are being answered; wait for some of them.")
        self._calls[tenant] += 1
        request[TENANT] = tenant
        try:
            async with asyncio.timeout(_CALL_S):
                return await handler(request)
        except TimeoutError:
            return refusal(408, f"The call was not done within {_CALL_S:.0f} s; ask again.")
        except PkmError as error:
            for kind, status in _STATUSES:
                if isinstance(error, kind):
                    return refusal(status, str(error))
            return _failed(error)
        except web.HTTPException:
            raise
        except Exception as error:
            return _failed(error)
        finally:
            self._calls[tenant] -= 1

    def _asks_for_us(self, host: str) -> bool:
        # A tunnel leads here from another port, so that only the name counts.
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        if name in self._names or _as_address(name) in self._names:
            return True
        return f"*.{name.partition('.')[2]}" in self._names

    def _comes_from_us(self, request: web.Request) -> bool:
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() != f"{self._scheme}://{request.host.lower()}":
            return False
        if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
            return True
        # A link that leads to the page is followed; nothing else of another site's is.
        return request.path == "/" and request.headers.get("Sec-Fetch-Mode") == "navigate"


def refusal(status: int, sentence: str) -> web.Response:
    """An answer that says why there is none."""
    return web.json_response({"error": sentence}, status=status)


def _as_address(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _failed(error: Exception) -> web.Response:
    reference = secrets.token_hex(4)
    _log.error("call failed, reference %s", reference, exc_info=error)
    return refusal(500, f"The service failed; its log has the reason under {reference}.")
