"""The command line `awp-edge`: a module per group of commands; heavy imports only inside the commands."""

from .app import main

__all__ = ["main"]
