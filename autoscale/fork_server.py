"""Imported first by the server that training processes are forked from: it ends with its job rank.

The server notices by itself that the rank is gone, but not before it has imported the training
stack, which takes long on a busy host. Not to be imported elsewhere: the import has this effect.
"""

import os

from .processes import end_with_whoever_started_this

_parent = os.getppid()
end_with_whoever_started_this()
if os.getppid() != _parent:  # it ended a moment before
    os._exit(1)
