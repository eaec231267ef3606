"""`python -m autoscale`: what launchers start on every rank."""

import sys

from .stop_request import listen

# Before the imports that take long: a job that is told to stop while it starts ends in good order.
if {"probe", "train", "run"} & set(sys.argv[1:3]):
    listen()

from .cli import main

main()
