"""Where images come from and how they become tensors."""

from .dataset import EpochSampler, PretrainImages
from .decode import BadPictureError, Shrunk, decode
from .files import as_lines, list_images, names_in
from .photographs import demo_photographs
from .pixels import PLAIN, Pixels
from .scan import ScanResult, TooManyBadPicturesError, hold_out, scan
from .sources import DatasetSource, FileSource, ImageSource, adapt
from .splits import Split, tell_gone
from .statistics import Statistics, fitting, measure
from .stored import item_of
from .transforms import IMAGENET_MEAN, IMAGENET_STD, HeldOutTransform, PretrainTransform

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PLAIN",
    "BadPictureError",
    "DatasetSource",
    "EpochSampler",
    "FileSource",
    "HeldOutTransform",
    "ImageSource",
    "Pixels",
    "PretrainImages",
    "PretrainTransform",
    "ScanResult",
    "Shrunk",
    "Split",
    "Statistics",
    "TooManyBadPicturesError",
    "adapt",
    "as_lines",
    "decode",
    "demo_photographs",
    "fitting",
    "hold_out",
    "item_of",
    "list_images",
    "measure",
    "names_in",
    "scan",
    "tell_gone",
]
