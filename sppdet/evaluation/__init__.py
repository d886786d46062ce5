"""How good detections are: VOC's and COCO's figures, diagnosis of errors, and comparison of runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
