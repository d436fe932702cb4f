"""Drawing that studies share: arrays in, matplotlib figures out.

Figures here need no backend. Matplotlib reads MPLBACKEND while it is imported, and fails where the
name, that of a notebook for instance, means nothing in this process: so it is imported without, and
told afterwards.
"""

import contextlib
import os
import sys

_backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
if _backend:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend
