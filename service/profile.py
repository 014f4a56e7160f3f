"""Which service is asked, and as whom: from options, the environment, and a profile file.

The profile file is PKM_PROFILE, or ~/.config/pkm/profile.yaml:

    server: pkm.example.org:7070
    token_file: ~/.config/pkm/token     # never the token itself on a command line
    certificate: ~/.config/pkm/ca.pem   # whom to trust; without it, the service is on this machine
    page: https://pkm.example.org:7071  # where `pkm ui` looks; port 7071 of the server unless given

`--server` and PKM_SERVER go before it, and so do PKM_TOKEN_FILE and PKM_CERTIFICATE. With none of these it is the service of
this user on this machine, as `pkm serve` starts it.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from memory_store.errors import UsageError
from memory_store.loopback import is_loopback
from service.client import Client

DEFAULT_PORT, DEFAULT_PAGE_PORT = 7070, 7071
SERVER, TOKEN_FILE, CERTIFICATE, PROFILE = "PKM_SERVER", "PKM_TOKEN_FILE", "PKM_CERTIFICATE", "PKM_PROFILE"
FOLDER = "PKM_FOLDER"


class ProfileError(UsageError):
    """Which service is meant, or what it asks for, can't be told."""


class Profile(BaseModel):
    """A service, where the token for it is, and the address of its page."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: str = f"127.0.0.1:{DEFAULT_PORT}"
    token_file: Path | None = None
    certificate: Path | None = None
    page: str | None = None


def default_folder() -> Path:
    """Where `pkm serve` keeps its files unless told otherwise."""
    return Path(os.environ.get(FOLDER) or "~/.pkm").expanduser()


def open_client(server: str | None, timeout_s: float = 10.0) -> Client:
    """A client of the service that is meant. Raises ProfileError for a profile or token that can't be read."""
    profile = _profile()
    address = _server(profile, server)
    certificate = _path(os.environ.get(CERTIFICATE)) or profile.certificate
    host = _host(address)
    if certificate is None and not is_loopback(host):
        raise ProfileError(
            f"The service at {address} is on another machine; say whose certificate to trust with {CERTIFICATE}=FILE, or "
            "`certificate` in the profile."
        )
    trusted = _read(certificate.expanduser(), "certificate") if certificate is not None else None
    return Client(address, _token(profile), trusted, timeout_s)


def find_page(server: str | None) -> tuple[str, str]:
    """The address of the page of the service that is meant, and the token for it. Raises UsageError like `open_client`."""
    profile = _profile()
    address = _server(profile, server)
    host = _host(address)
    name = f"[{host}]" if ":" in host else host
    told = default_folder() / "page"
    if profile.page is not None:
        page = profile.page.rstrip("/")
    elif not is_loopback(host):
        page = f"https://{name}:{DEFAULT_PAGE_PORT}"
    elif told.is_file():
        page = told.read_text(encoding="utf-8").strip()
    else:
        page = f"http://{name}:{DEFAULT_PAGE_PORT}"
    return page, _token(profile)


def _server(profile: Profile, given: str | None) -> str:
    return given or os.environ.get(SERVER) or profile.server


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _token(profile: Profile) -> str:
    file = _path(os.environ.get(TOKEN_FILE)) or profile.token_file or default_folder() / "token"
    return _read(file.expanduser(), "token").decode("utf-8", "replace").strip()


def _profile() -> Profile:
    path = Path(os.environ.get(PROFILE) or "~/.config/pkm/profile.yaml").expanduser()
    if not path.is_file() and not os.environ.get(PROFILE):
        return Profile()
    try:
        return Profile.model_validate(yaml.safe_load(_read(path, "profile")) or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise ProfileError(f"{path} is no profile: {error}") from None


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = " Is `pkm serve` running?" if what == "token" else ""
        raise ProfileError(f"The {what} {path} can't be read: {error.strerror}.{hint}") from None
