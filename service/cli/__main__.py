"""`python -m service.cli` is `pkm`."""

from service.cli import main

main()
