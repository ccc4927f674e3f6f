"""Where images come from and how they become tensors."""

from ..imagenet import IMAGENET_MEAN, IMAGENET_STD
from .addresses import Identities, absolute, base_name, is_url, within
from .dataset import EpochSampler, PretrainImages, Turn
from .decode import BadPictureError, Shrunk, decode
from .few import check_shown, few_pictures
from .files import as_lines, names_in
from .in_turn import ShardsInTurn
from .labelled import LabelledPicture, list_in_parts, list_labelled
from .moved import UNKNOWN, as_place, at_new_place, file_sizes
from .photographs import demo_photographs
from .pixels import PLAIN, Pixels
from .places import blaming, check_no_input, is_missing, list_pictures, list_shards
from .remote import tell_repeated
from .scan import MOST_BAD, ScanResult, TooManyBadPicturesError, hold_out, scan
from .shards import Places, masks_of, shards_of, stamp_of
from .sources import DatasetSource, FileSource, ImageSource, adapt
from .splits import Split, tell_gone
from .statistics import Statistics, fitting, measure
from .stored import item_of
from .transforms import HeldOutTransform, Normalise, PretrainTransform
from .undecoded import Decoder, collate

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MOST_BAD",
    "PLAIN",
    "UNKNOWN",
    "BadPictureError",
    "DatasetSource",
    "Decoder",
    "EpochSampler",
    "FileSource",
    "HeldOutTransform",
    "Identities",
    "ImageSource",
    "LabelledPicture",
    "Normalise",
    "Pixels",
    "Places",
    "PretrainImages",
    "PretrainTransform",
    "ScanResult",
    "ShardsInTurn",
    "Shrunk",
    "Split",
    "Statistics",
    "TooManyBadPicturesError",
    "Turn",
    "absolute",
    "adapt",
    "as_lines",
    "as_place",
    "at_new_place",
    "base_name",
    "blaming",
    "check_no_input",
    "check_shown",
    "collate",
    "decode",
    "demo_photographs",
    "few_pictures",
    "file_sizes",
    "fitting",
    "hold_out",
    "is_missing",
    "is_url",
    "item_of",
    "list_in_parts",
    "list_labelled",
    "list_pictures",
    "list_shards",
    "masks_of",
    "measure",
    "names_in",
    "scan",
    "shards_of",
    "stamp_of",
    "tell_gone",
    "tell_repeated",
    "within",
]
