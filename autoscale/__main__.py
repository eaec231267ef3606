"""`python -m autoscale`: what launchers start on every rank."""

from .cli import main

main()
