"""JPEGs that a GPU decodes: a loading process reads the file and draws the crop, and the main one cuts it out.

The same crops as of pictures that a loading process decodes. Their values differ a little, as decoders round in their
own ways.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import UsageError
from .decode import Shrink, open_header, open_regular, orientation_of, quiet
from .sources import FileSource, ImageSource
from .transforms import Coded, Undecoded

_END = b"\xff\xd9"
_TAIL = 32  # bytes among which the end may be
_MODES = {"L": 1, "RGB": 3}

Redo = Callable[[Any], Tensor]
"""The key of an example -> the example, decoded by this process."""


def undecoded(source: ImageSource, index: int, shrink: Shrink | None) -> Undecoded | None:
    """A JPEG as it is in its file; None of any other picture, and of one that would come back smaller.

    Raises:
        OSError: it cannot be read.
    """
    if not isinstance(source, FileSource) or not source.pixels.is_plain or source.is_gone(index):
        return None
    content = source.content(index)
    if content is None:
        with open_regular(source.name(index)) as file:
            content = file.read()
    if not content.startswith(b"\xff\xd8\xff") or _END not in content[-_TAIL:]:
        return None
    try:
        with quiet():
            picture = open_header(io.BytesIO(content))
    except (OSError, SyntaxError, Image.DecompressionBombError):  # reading it as usual says in words what is wrong
        return None
    usual = picture.format == "JPEG" and picture.mode in _MODES and picture.info.get("adobe_transform") != 0
    if not usual or orientation_of(picture) != 1:
        return None
    width, height = picture.size
    return None if shrink is not None and shrink(height, width) >= 2 else Undecoded(content, (height, width))


@dataclass(frozen=True)
class CodedBatch:
    """A batch of which some pictures are yet to be decoded.

    Attributes:
        contents: uint8, their files one after the other: a single tensor is handed from process to process.
        sizes: of each file, in bytes.
        coded: of each of these, its place in the batch, its key, its box, and whether it is mirrored.
        others: by place, crops (C, H, W) of pictures that are decoded.
    """

    contents: Tensor
    sizes: list[int]
    coded: list[tuple[int, Any, tuple[int, int, int, int], bool]]
    others: dict[int, Tensor]

    def __len__(self) -> int:
        return len(self.coded) + len(self.others)


def collate(examples: Sequence[Tensor | Coded], whole: Callable[[Sequence[Tensor]], Tensor]) -> Tensor | CodedBatch:
    """Examples as a batch: by `whole` where all are decoded."""
    coded = [(place, one) for place, one in enumerate(examples) if isinstance(one, Coded)]
    if not coded:
        return whole(examples)  # type: ignore[arg-type]
    contents = [torch.frombuffer(bytearray(one.content), dtype=torch.uint8) for _, one in coded]
    return CodedBatch(
        torch.cat(contents),
        [len(content) for content in contents],
        [(place, one.key, one.box, one.mirrored) for place, one in coded],
        {place: one for place, one in enumerate(examples) if isinstance(one, Tensor)},
    )


class Decoder:
    """Decodes batches on a device, in a thread and a stream of its own.

    Args:
        device: that decodes.
        shape: (H, W) of crops.
        channels: of crops, 1 or 3.
        redo: makes an example of a picture that this device cannot decode.

    Raises:
        UsageError: torchvision cannot decode there at all.
    """

    def __init__(self, device: torch.device, shape: tuple[int, int], channels: int, redo: Redo) -> None:
        self._device, self._shape, self._channels, self._redo = device, shape, channels, redo
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        sample = io.BytesIO()
        Image.new("RGB", (16, 16)).save(sample, "JPEG")
        try:
            self._pictures([torch.frombuffer(bytearray(sample.getvalue()), dtype=torch.uint8)])
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"decode is 'device', but torchvision decodes no JPEGs on {device}: {reason}. Leave it to the workers"
            ) from error

    def ahead(self, batches: Any) -> Any:
        """The batches, uint8 (B, C, H, W) on the device: each is decoded while the one before it is used."""
        coming = None
        with ThreadPoolExecutor(1, "decoding") as thread:
            for batch in batches:
                following = thread.submit(self, batch)
                if coming is not None:
                    yield self._handed_over(coming.result())
                coming = following
            if coming is not None:
                yield self._handed_over(coming.result())

    def __call__(self, batch: Tensor | CodedBatch) -> Tensor:
        if isinstance(batch, Tensor):
            return batch
        with torch.cuda.stream(self._stream), torch.no_grad():
            images = self._decoded(batch)
            if self._stream is not None:
                self._stream.synchronize()  # waits in this thread alone
        return images

    def _handed_over(self, images: Tensor) -> Tensor:
        if images.is_cuda:  # made in another stream than it is used in
            images.record_stream(torch.cuda.current_stream(images.device))
        return images

    def _decoded(self, batch: CodedBatch) -> Tensor:
        contents = list(batch.contents.split(batch.sizes))
        pictures: list[Tensor | None]
        try:
            pictures = [*self._pictures(contents)]
        except RuntimeError:  # of one of them: the others are decoded one by one
            pictures = [self._alone(content) for content in contents]
        images = torch.empty(len(batch), self._channels, *self._shape, dtype=torch.uint8, device=self._device)
        for picture, (place, key, box, mirrored) in zip(pictures, batch.coded, strict=True):
            images[place] = self._redo(key) if picture is None else self._cut(picture, box, mirrored)
        for place, crop in batch.others.items():
            images[place] = crop
        return images

    def _pictures(self, contents: list[Tensor]) -> Sequence[Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg

        mode = ImageReadMode.RGB if self._channels == 3 else ImageReadMode.GRAY
        return decode_jpeg(contents, mode, device=self._device)  # type: ignore[return-value]

    def _alone(self, content: Tensor) -> Tensor | None:
        try:
            return self._pictures([content])[0]
        except RuntimeError:
            return None

    def _cut(self, picture: Tensor, box: tuple[int, int, int, int], mirrored: bool) -> Tensor:
        """(C, h, w) -> (C, H, W), bicubic, antialiased."""
        top, left, height, width = box
        part = picture[:, top : top + height, left : left + width]
        if part.is_cuda:  # which resizes floats alone
            part = part.float()
        crop = functional.interpolate(part[None], self._shape, mode="bicubic", antialias=True)[0]
        crop = crop.round_().clamp_(0, 255) if crop.is_floating_point() else crop
        return crop.flip(2) if mirrored else crop
