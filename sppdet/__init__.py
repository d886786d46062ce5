"""Region-based object detectors of the R-CNN family, SPP-net first.

>>> import sppdet
>>> detector = sppdet.load("runs/demo")  # doctest: +SKIP
>>> for found in detector.predict("photo.jpg"):  # doctest: +SKIP
...     print(found.name, found.score, found.xyxy)
"""

import os

import lazy_loader

# Torch asks the kernel for pages of 2 MB, if told so before it loads: conv layers' outputs are large and short-lived,
# and in a worker of one thread the faults of their small pages are a seventh of the time of a conv map.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

# The public names of __init__.pyi are imported when they are first used: `import sppdet` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
