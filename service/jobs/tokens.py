"""Who may ask a service: bearer tokens, each standing for a tenant. The service keeps their digests alone.

A token file has a line for every token, `TENANT SHA256`, where SHA256 is that of the token in hexadecimal digits; empty lines
and those that begin with # say nothing. Tokens are random, so that a plain digest can't be turned back.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from memory_store.errors import UsageError

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEADER = "authorization"
_SCHEME = "Bearer "
_TOKEN_BYTES = 32
_TOKEN_LENGTH_MAX = 512


def digest_of(token: str) -> str:
    """What a token file holds in place of the token."""
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tenants of all tokens, by the tokens' digests."""

    def __init__(self, tenants: Mapping[str, str]) -> None:
        self._tenants = dict(tenants)

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """The tokens of a token file. Raises UsageError that names the line if it is not one, or if it has no token."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The token file {path} can't be read: {error}.") from None
        tenants = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            tenant, _, digest = line.strip().partition(" ")
            if not TENANT.fullmatch(tenant) or not _DIGEST.fullmatch(digest.strip()):
                raise UsageError(
                    f"{path}:{number}: write a tenant (a-z, 0-9, '-' and '_') and the SHA-256 of its token, "
                    "with a space between them."
                )
            tenants[digest.strip()] = tenant
        if not tenants:
            raise UsageError(
                f"The token file {path} has no token, so that nobody could ask anything; add one."
            )
        return cls(tenants)

    def tenant_of(self, metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
        """Whose token stands in the metadata of a call; None without a token that is known."""
        given = [value for key, value in metadata if key == _HEADER]
        if len(given) != 1 or not isinstance(given[0], str) or len(given[0]) > _TOKEN_LENGTH_MAX:
            return None
        scheme, token = given[0][: len(_SCHEME)], given[0][len(_SCHEME) :]
        if scheme != _SCHEME:
            return None
        asked = digest_of(token)
        # All are compared, in the same time for each: how long that takes tells nothing of the digests.
        matching = [tenant for known, tenant in self._tenants.items() if hmac.compare_digest(known, asked)]
        return matching[0] if matching else None


def own_token(path: Path) -> str:
    """The token in `path`, for the user of this machine who owns the file; a new one if there is none.

    Raises UsageError if others could read it.
    """
    if not path.exists():
        # No name that another could have made before; the umask does not matter, since the mode is set first.
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_TOKEN_BYTES) + "\n")
        os.rename(fresh, path)
    if path.stat().st_mode & 0o077:
        raise UsageError(
            f"The token in {path} can be read by others; remove the file, and a new token will be made."
        )
    return path.read_text(encoding="ascii").strip()


def bearer(token: str) -> tuple[str, str]:
    """The entry of a call's metadata that carries a token."""
    return _HEADER, _SCHEME + token
