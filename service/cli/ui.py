"""`pkm ui`: the page of a service, in a browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from service.cli.asking import ServerOption
from service.cli.output import messages

_DOOR = """<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<title>pkm</title>
<a href="{address}">Open the page of pkm</a>
"""


def ui(
    browser: Annotated[
        bool, typer.Option(help="Open a browser; without one, print the address with the token in it.")
    ] = True,
    server: ServerOption = None,
) -> None:
    """Open the page of the service: jobs, their curves, and the map of slot accesses, live.

    The token is behind the # of the address, which a browser tells no server.
    """
    import webbrowser

    from service.profile import default_folder, find_page

    page, token = find_page(server)
    address = f"{page}/#token={token}"
    if not browser:
        typer.echo(address)
        return
    messages().print(f"The page is at {page}", markup=False, soft_wrap=True)
    # The command line of a browser can be read by everyone on this machine: it gets the name of a file that can't.
    door = default_folder() / "open-page.html"
    _write_for_owner(door, _DOOR.format(address=address))
    if not webbrowser.open(door.resolve().as_uri()):
        messages().print(
            "There is no browser here; pkm ui --no-browser prints an address to open elsewhere.", markup=False
        )


def _write_for_owner(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
