"""Commands that make keys. They touch no store and no database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coldstore.cli.common import Json, app, print_json
from coldstore.codec.sign import SigningKey
from coldstore.errors import ConfigError
from coldstore.keyrings.files import write_secret
from coldstore.keyrings.local import make_key_file, retire_key, rotate_key_file


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The key file.")],
    *,
    rotate: Annotated[bool, typer.Option("--rotate", help="Put a new current key into the file; the old ones still open.")] = False,
    retire: Annotated[str | None, typer.Option("--retire", help="Take this old key out of the file for good.")] = None,
    sign: Annotated[bool, typer.Option("--sign", help="Make a key that signs, and print its did:key.")] = False,
    json: Json = False,
) -> None:
    """Make a key file that seals snapshots, or one that signs them. A file that is there is never overwritten."""
    if sum([rotate, retire is not None, sign]) > 1:
        raise ConfigError("choose one of --rotate, --retire and --sign")
    if sign:
        _make_signing_key(path, json=json)
    elif retire is not None:
        day = retire_key(path, retire)
        _say({"key": retire, "path": str(path)}, f"key {retire} of {path} is retired ({day}).", _RETIRED, json=json)
    elif rotate:
        key = rotate_key_file(path)
        _say({"key": key, "path": str(path)}, f"key {key} seals from now on; the older ones in {path} still open.", _LOSS, json=json)
    else:
        key = make_key_file(path)
        _say({"key": key, "path": str(path)}, f"key {key} is in {path}.", _LOSS, json=json)


_LOSS = "Without this file nobody opens what is sealed for it. Keep a copy of it, apart from the store."
_RETIRED = "What was sealed for it alone opens no more, except with a copy of the file as it was."
_FORGERY = "Whoever has this file signs in its name. Its did:key above is no secret: give it to those who check."


def _make_signing_key(path: Path, *, json: bool) -> None:
    key = SigningKey.generate()
    write_secret(path, f"# The signing key of {key.did}. Keep it secret.\n{key.text()}\n", what="signing key")
    _say({"did": key.did, "path": str(path)}, f"{key.did} signs with {path}.", _FORGERY, json=json)


def _say(result: dict[str, str], done: str, meaning: str, *, json: bool) -> None:
    if json:
        print_json(result)
    else:
        print(f"{done}\n{meaning}")
