"""`python -m dockpy`: the client."""

from dockpy.api.client import main

main()
