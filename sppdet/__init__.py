"""Region-based object detectors of the R-CNN family, SPP-net first.

>>> import sppdet
>>> detector = sppdet.load("runs/demo")  # doctest: +SKIP
>>> for detection in detector.predict("photo.jpg"):  # doctest: +SKIP
...     print(detection.name, detection.score, detection.xyxy)
"""

import os

import lazy_loader

# With this set before torch is loaded, torch asks the kernel for memory pages of 2 MB. The outputs of conv layers are
# large and short-lived: with small pages, a worker of one thread spends a seventh of its time on page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Threads of OpenMP that wait for each other keep their cores busy, by default for about a millisecond at a time. On a
# machine that does anything else, a thread that lost its core then stops all others: training took 10 times its share.
# With this set before OpenMP is loaded, they wait for a few microseconds and then sleep.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # GNU's OpenMP, in torch's Linux wheels
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # milliseconds; LLVM's and Intel's OpenMP

__version__ = "0.1.0"

# The public names in __init__.pyi are imported when they are first used: `import sppdet` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
