"""`python -m streamchar`."""

from streamchar.cli.main import entry

entry()
