"""`python -m coldstore` is the command line."""

from coldstore.cli import main

main()
