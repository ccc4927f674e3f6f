"""Where images come from and how they become tensors."""

from .dataset import EpochSampler, PretrainImages
from .decode import BadPictureError, Shrunk, decode
from .files import as_lines, list_images, names_in
from .moved import UNKNOWN, at_new_place, file_sizes
from .photographs import demo_photographs
from .scan import ScanResult, TooManyBadPicturesError, hold_out, scan
from .sources import DatasetSource, FileSource, ImageSource, adapt
from .splits import Split, tell_gone
from .transforms import IMAGENET_MEAN, IMAGENET_STD, HeldOutTransform, PretrainTransform

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "UNKNOWN",
    "BadPictureError",
    "DatasetSource",
    "EpochSampler",
    "FileSource",
    "HeldOutTransform",
    "ImageSource",
    "PretrainImages",
    "PretrainTransform",
    "ScanResult",
    "Shrunk",
    "Split",
    "TooManyBadPicturesError",
    "adapt",
    "as_lines",
    "at_new_place",
    "decode",
    "demo_photographs",
    "file_sizes",
    "hold_out",
    "list_images",
    "names_in",
    "scan",
    "tell_gone",
]
