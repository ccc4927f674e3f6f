"""Writers of picture files of every kind that samples come in, from arrays: the truth that decoding is held against."""

import io
import itertools
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

NONE, LZW, DEFLATE, PACKBITS, LZMA = 1, 5, 8, 32773, 34925
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5


def stretched(samples: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """(H, W, C) of any type as bytes, from the least known value to the largest."""
    inside = samples.astype(np.longdouble) if known is None else samples[known].astype(np.longdouble)
    values = samples.astype(np.longdouble).clip(inside.min(), inside.max())
    return np.rint(255 * (values - inside.min()) / (inside.max() - inside.min())).astype(np.int64)


def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Bytes (H, W, C) as seen on white; opacity (H, W) from 0 to 1."""
    return np.rint(colours * opacity[..., None] + 255 * (1 - opacity[..., None])).astype(np.int64)


def tiff(
    samples: np.ndarray,
    *,
    bits: int | None = None,
    order: str = "<",
    photometric: int | None = None,
    planar: bool = False,
    compression: int = NONE,
    predictor: int = 1,
    tile: tuple[int, int] | None = None,
    rows: int = 5,
    big: bool = False,
    more: dict[int, tuple[str, Sequence[int] | bytes]] | None = None,
    pages: int = 1,
) -> bytes:
    """A TIFF file of samples (H, W, bands) as TIFF 6.0 describes it.

    Args:
        bits: of each sample, where they are not those of the array's type.
        tile: (height, width), or strips of `rows` rows.
        big: a BigTIFF.
        more: further tags, by number: "H" for short, "I" for long or "s" for text, and the values.
    """
    height, width, bands = samples.shape
    bits = bits or 8 * samples.itemsize
    planes = [samples[..., i : i + 1] for i in range(bands)] if planar else [samples]
    tall, wide = tile or (rows, width)
    blocks: list[bytes] = []
    for plane in planes:
        for top in range(0, height, tall):
            for left in range(0, width, wide):
                block = plane[top : top + tall, left : left + wide]
                if tile:
                    missing = (0, tall - block.shape[0]), (0, wide - block.shape[1]), (0, 0)
                    block = np.pad(block, missing)
                blocks.append(_compressed(_packed(_predicted(block, predictor), bits, order, predictor), compression))
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[samples.dtype.kind]
    tags: dict[int, tuple[str, Sequence[int] | bytes]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * bands),
        259: ("H", [compression]),
        262: ("H", [photometric if photometric is not None else RGB if bands == 3 else BLACK_IS_ZERO]),
        277: ("H", [bands]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * bands),
        **({317: ("H", [predictor])} if predictor != 1 else {}),
        **({322: ("I", [wide]), 323: ("I", [tall])} if tile else {278: ("I", [rows])}),
        **(more or {}),
    }
    offset_type = "Q" if big else "I"
    body = io.BytesIO()
    head = (b"II" if order == "<" else b"MM") + (
        struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    )
    body.write(head)
    link = len(head) - (8 if big else 4)
    for _ in range(pages):
        offsets: list[int] = []
        for block in blocks:
            offsets.append(body.seek(0, io.SEEK_END))
            body.write(block)
        tags[324 if tile else 273] = (offset_type, offsets)
        tags[325 if tile else 279] = ("I", [len(block) for block in blocks])
        placed: dict[int, tuple[str, int, bytes]] = {}
        for number, (form, values) in tags.items():
            packed = bytes(values) if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{form}", *values)
            if len(packed) > (8 if big else 4):
                place = body.seek(0, io.SEEK_END)
                body.write(packed)
                packed = struct.pack(order + offset_type, place)
            placed[number] = (form, len(values), packed.ljust(8 if big else 4, b"\0"))
        directory = body.seek(0, io.SEEK_END)
        body.write(struct.pack(order + ("Q" if big else "H"), len(placed)))
        for number, (form, count, packed) in sorted(placed.items()):
            kind_of = {"s": 2, "H": 3, "I": 4, "Q": 16}[form]
            body.write(struct.pack(order + "HH" + offset_type, number, kind_of, count) + packed)
        next_link = body.tell()
        body.write(bytes(8 if big else 4))
        body.seek(link)
        body.write(struct.pack(order + offset_type, directory))
        link = next_link
    return body.getvalue()


def _predicted(block: np.ndarray, predictor: int) -> np.ndarray:
    """Differences from left to right, by TIFF's predictor 2."""
    if predictor != 2:
        return block
    return np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1]))


def _packed(block: np.ndarray, bits: int, order: str, predictor: int) -> bytes:
    height = len(block)
    if bits % 8:
        values = block.reshape(height, -1, 1).astype(np.int64)
        single = (values >> np.arange(bits - 1, -1, -1)) & 1
        return np.packbits(single.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    if predictor == 3:  # of floats: their bytes by rank, the highest first, then differences of bytes
        bands = block.shape[2]
        sorted_bytes = block.astype(block.dtype.newbyteorder(">")).reshape(height, -1, 1).view(np.uint8)
        row = sorted_bytes.transpose(0, 2, 1).reshape(height, -1, bands)
        return np.diff(row, axis=1, prepend=np.zeros_like(row[:, :1])).tobytes()
    return block.astype(block.dtype.newbyteorder(order)).tobytes()


def _compressed(data: bytes, compression: int) -> bytes:
    if compression == DEFLATE:
        return zlib.compress(data)
    if compression == LZMA:
        return lzma.compress(data)
    if compression == PACKBITS:  # as runs of literals
        return b"".join(bytes([len(part) - 1]) + part for part in (data[i : i + 128] for i in range(0, len(data), 128)))
    if compression == LZW:  # by libtiff, from a row of grey bytes
        file = io.BytesIO()
        Image.frombytes("L", (len(data), 1), data).save(file, "TIFF", compression="tiff_lzw", strip_size=1 << 20)
        page = Image.open(io.BytesIO(file.getvalue()))
        (offset,), (count,) = page.tag_v2[273], page.tag_v2[279]  # type: ignore[attr-defined]
        return file.getvalue()[offset : offset + count]
    return data


def png(samples: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of samples (H, W, bands).

    Args:
        colour: PNG's colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        chunks: further ones, before the pixels.
    """
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + _packed(row[None], bits, ">", 1) for row in samples)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def pnm(samples: np.ndarray, most: int) -> bytes:
    """A binary PGM or PPM file of samples (H, W, 1 or 3) up to `most`."""
    height, width, bands = samples.shape
    head = f"P{5 if bands == 1 else 6}\n{width} {height}\n{most}\n".encode()
    return head + samples.astype(">u2" if most > 255 else "u1").tobytes()


def fits(samples: np.ndarray) -> bytes:
    """A FITS file of (H, W) numbers, whose rows go from the bottom up."""
    kind = {"u": 1, "i": 1, "f": -1}[samples.dtype.kind] * 8 * samples.itemsize
    cards = {"SIMPLE": "T", "BITPIX": kind, "NAXIS": 2, "NAXIS1": samples.shape[1], "NAXIS2": samples.shape[0]}
    head = b"".join(f"{name:8}= {value:>20}".ljust(80).encode() for name, value in cards.items()) + b"END".ljust(80)
    data = samples[::-1].astype(samples.dtype.newbyteorder(">")).tobytes()
    return head.ljust(2880) + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


def bmp(samples: np.ndarray) -> bytes:
    """A 32-bit BMP V5 of (H, W, 4): red, green, blue, alpha."""
    height, width, _ = samples.shape
    data = samples[::-1, :, [2, 1, 0, 3]].astype(np.uint8).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(data), 2835, 2835, 0, 0) + masks + b"BGRs"
    start = 14 + 124
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head.ljust(124, b"\0") + data


def tga(samples: np.ndarray) -> bytes:
    """A 32-bit Targa file of (H, W, 4), its first row at the top."""
    height, width, _ = samples.shape
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, width, height, 32, 0x28)
    return head + samples[..., [2, 1, 0, 3]].astype(np.uint8).tobytes()


Case = tuple[str, bytes, np.ndarray | str]
"""What to call it, the file, and its pixels (H, W, 1 or 3), or words of the refusal."""


def _numbers(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """All of a type's range."""
    rng = np.random.default_rng(seed)
    if kind[0] == "f":
        return rng.normal(0, 10, shape).astype(kind)
    ends = np.iinfo(kind)
    return rng.integers(ends.min, ends.max, shape, dtype=kind, endpoint=True)


_LAYOUTS: dict[str, dict] = {
    "strips": {},
    "lzw": {"compression": LZW},
    "lzw-2": {"compression": LZW, "predictor": 2, "rows": 11},
    "deflate-2-tiles": {"compression": DEFLATE, "predictor": 2, "tile": (16, 32)},
    "packbits": {"compression": PACKBITS},
    "lzma-tiles": {"compression": LZMA, "tile": (16, 16)},
    "tiles": {"tile": (32, 16)},
    "big": {"big": True, "compression": DEFLATE},
}
_SHAPE = (21, 37)


def tiff_cases(every: int = 1) -> list[Case]:
    """TIFF files of every type of sample, in every layout and byte order; or only one of every `every`."""
    cases: list[Case] = []
    turns = itertools.count()

    def add(name: str, expected: np.ndarray | str, samples: np.ndarray, **options: object) -> None:
        for order in "<>":
            for layout, how in _LAYOUTS.items():
                if (order == ">" and layout == "big") or next(turns) % every:
                    continue
                how = {**how, **options}
                is_float_or_packed = samples.dtype.kind in "fc" or int(str(how.get("bits") or 8)) % 8
                if how.get("predictor") == 2 and is_float_or_packed:
                    how["predictor"] = 3 if samples.dtype.kind == "f" else 1
                cases.append((f"{name} {order} {layout}", tiff(samples, order=order, **how), expected))

    for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"):
        grey, colour = _numbers(kind, (*_SHAPE, 1)), _numbers(kind, (*_SHAPE, 3))
        shown: Callable[[np.ndarray], np.ndarray] = (lambda a: a) if kind == "u1" else stretched
        add(f"grey {kind}", shown(grey), grey)
        add(f"white is zero {kind}", 255 - shown(grey), grey, photometric=WHITE_IS_ZERO)
        add(f"colour {kind}", shown(colour), colour)
        add(f"planes {kind}", shown(colour), colour, planar=True)
    for kind in ("u1", "u2"):
        most = np.iinfo(kind).max
        shown = (lambda a: a) if kind == "u1" else stretched
        for planar in (False, True):
            four, two = _numbers(kind, (*_SHAPE, 4), 1), _numbers(kind, (*_SHAPE, 2), 1)
            four[3:6, :, 3], two[3:6, :, 1], four[7:9, :, 3], two[7:9, :, 1] = 0, 0, most, most
            alpha, grey_alpha = four[..., 3] / most, two[..., 1] / most
            seen = np.repeat((alpha > 0)[..., None], 3, 2)
            colour = four[..., :3] if kind == "u1" else stretched(four[..., :3], seen)
            grey = two[..., :1] if kind == "u1" else stretched(two[..., :1], (grey_alpha > 0)[..., None])
            straight, extra = {338: ("H", [2])}, {338: ("H", [0])}
            name = f"{kind} {'planes' if planar else ''}"
            rgb, inverted = {"photometric": RGB, "planar": planar}, {"photometric": WHITE_IS_ZERO, "planar": planar}
            add(
                f"colour and opacity {name}",
                on_white(colour, alpha),
                four,
                photometric=RGB,
                planar=planar,
                more=straight,
            )
            add(f"grey and opacity {name}", on_white(grey, grey_alpha), two, planar=planar, more=straight)
            add(f"white is zero and opacity {name}", on_white(255 - grey, grey_alpha), two, **inverted, more=straight)
            add(f"colour and a band {name}", shown(four[..., :3]), four, **rgb, more=extra)
            add(f"two bands {name}", "2 bands, which are not said", two, planar=planar, more=extra)
            add(f"four bands {name}", "4 bands, which are not said", four, planar=planar, photometric=BLACK_IS_ZERO)
            five = _numbers(kind, (*_SHAPE, 5), 2)
            add(f"five bands {name}", "5 bands, which are not said", five, planar=planar)
            two_more = {338: ("H", [0, 0])}
            add(
                f"colour and two bands {name}",
                shown(five[..., :3]),
                five,
                photometric=RGB,
                planar=planar,
                more=two_more,
            )
    for bits in (1, 2, 4, 10, 12, 14):
        rng = np.random.default_rng(bits)
        grey, colour = (
            rng.integers(0, 1 << bits, (*_SHAPE, 1), np.uint16),
            rng.integers(0, 1 << bits, (*_SHAPE, 3), np.uint16),
        )
        most = (1 << bits) - 1
        shown = (lambda a, most=most: np.rint(a * (255 / most)).astype(int)) if bits < 8 else stretched
        add(f"grey of {bits} bits", shown(grey), grey, bits=bits)
        add(f"white is zero of {bits} bits", 255 - shown(grey), grey, bits=bits, photometric=WHITE_IS_ZERO)
        add(f"colour of {bits} bits", shown(colour), colour, bits=bits)
        add(f"planes of {bits} bits", shown(colour), colour, bits=bits, planar=True)
    twelve = np.random.default_rng(3).integers(100, 4096, (*_SHAPE, 3), np.uint16)
    add("12 bits of 16", stretched(twelve), twelve)
    add("12 bits of 16 in planes", stretched(twelve), twelve, planar=True)
    for kind, missing in (("i2", -9999), ("f4", -9999), ("f8", -1e30), ("f4", -3.4028234663852886e38), ("u2", 0)):
        values = np.abs(_numbers(kind, (*_SHAPE, 1), 4)) // 2 + np.dtype(kind).type(1)
        values[4:7, 8:20] = missing
        known = np.ones(values.shape, bool)
        known[4:7, 8:20] = False
        text = f"{missing!r}\0".encode()
        add(
            f"no data {missing} {kind}", np.where(known, stretched(values, known), 0), values, more={42113: ("s", text)}
        )
    holes = _numbers("f4", (*_SHAPE, 1), 5)
    holes[2, 2:5, 0] = np.nan, np.inf, -np.inf
    finite = np.isfinite(holes)
    expected = np.where(finite, stretched(np.where(finite, holes, 0), finite), 0)
    expected[2, 3] = 255
    add("holes", expected, holes)
    premultiplied = _numbers("u2", (*_SHAPE, 4), 6)
    opacity = premultiplied[..., 3].astype(float) / 65535
    pure = premultiplied[..., :3] * 1.0
    premultiplied[..., :3] = np.rint(pure * opacity[..., None])
    add("premultiplied", on_white(stretched(pure), opacity), premultiplied, photometric=RGB, more={338: ("H", [1])})
    complexes = _numbers("f4", (*_SHAPE, 1)).astype(np.complex64)
    grey = _numbers("u2", (*_SHAPE, 1))
    add("complex", "complex numbers", complexes)
    add("mixed bits", "bands of different types", _numbers("u1", (*_SHAPE, 3)), more={258: ("H", [8, 8, 16])})
    add("colour filter", "colours .photometric interpretation 32803. that", grey, photometric=32803)
    add("palette of 16 bits", "colours .photometric interpretation 3. that", grey, photometric=3)
    add(
        "CMYK planes of 16 bits",
        "photometric interpretation 5",
        _numbers("u2", (*_SHAPE, 4)),
        photometric=CMYK,
        planar=True,
    )
    of_24_bits = {277: ("H", [1]), 258: ("H", [24])}
    add("24 bits", "numbers of 24 bits", _numbers("u1", (*_SHAPE, 3)), photometric=BLACK_IS_ZERO, more=of_24_bits)
    ycbcr = _numbers("u1", (*_SHAPE, 3), 10)
    shown = np.asarray(Image.fromarray(ycbcr, "YCbCr").convert("RGB"))
    shared = "photometric interpretation 6. that"
    add("YCbCr", shown, ycbcr, photometric=6, more={530: ("H", [1, 1])})
    add("YCbCr, colours shared", shared, ycbcr, photometric=6, more={530: ("H", [2, 2])})
    cases += [("JPEG 2000", tiff(grey, more={259: ("H", [34712])}), "compression 34712, which is not read")]
    cases += [("floats by horizontal", tiff(holes, compression=DEFLATE, more={317: ("H", [2])}), "predictor 2, which")]
    return cases


def other_cases() -> list[Case]:
    """PNG, PGM, PPM, FITS, BMP and Targa files."""
    cases: list[Case] = []
    for bits in (1, 2, 4, 8, 16):
        most = (1 << bits) - 1
        rng = np.random.default_rng(bits)
        for colour, bands in ((0, 1), (2, 3), (4, 2), (6, 4)):
            if bits < 8 and colour:
                continue
            samples = rng.integers(0, most + 1, (*_SHAPE, bands), np.uint16)
            if bands in (2, 4):
                samples[..., :-1] //= 2
                samples[3:6, :, :-1], samples[3:6, :, -1] = most, 0  # the brightest is not seen
            samples = samples.astype(np.uint8 if bits <= 8 else np.uint16)
            colours = samples[..., :1] if bands < 3 else samples[..., :3]
            opacity = samples[..., -1] / most if bands in (2, 4) else np.ones(_SHAPE)
            seen = np.repeat((opacity > 0)[..., None], colours.shape[2], 2)
            shown = stretched(colours, seen) if bits == 16 else np.rint(colours * (255 / most))
            cases.append((f"png {colour} {bits}", png(samples, bits, colour), on_white(shown, opacity)))
            if bands in (1, 3) and bits >= 8:
                samples[5:8] = samples[5, 5]
                seen = (samples != samples[5, 5]).any(2)
                key = (b"tRNS", samples[5, 5].astype(">u2").tobytes())
                every = np.repeat(seen[..., None], bands, 2)
                shown = stretched(samples, every) if bits == 16 else samples
                cases.append((f"png {colour} {bits} key", png(samples, bits, colour, key), on_white(shown, seen * 1.0)))
    twelve = np.random.default_rng(7).integers(100, 4096, (*_SHAPE, 4), np.uint16)
    twelve[..., 3] = 65535
    cases += [
        ("png 12 of 16", png(twelve[..., :3], 16, 2), stretched(twelve[..., :3])),
        ("png 12 of 16 and opacity", png(twelve, 16, 6), stretched(twelve[..., :3])),
        ("ppm 12 of 16", pnm(twelve[..., :3], 65535), stretched(twelve[..., :3])),
    ]
    for most in (1, 100, 255, 4095, 65535):
        for bands in (1, 3):
            samples = np.random.default_rng(most).integers(0, most + 1, (*_SHAPE, bands), np.uint16)
            samples[0, 0], samples[0, 1] = 0, most
            shown = stretched(samples) if most > 255 else np.rint(samples * (255 / most))
            cases.append((f"pnm {bands} {most}", pnm(samples, most), shown))
    for kind in ("u1", "i2", "i4", "f4", "f8"):
        cases.append((f"fits {kind}", fits(_numbers(kind, _SHAPE, 8)), "not a picture that Pillow can read"))
    four = _numbers("u1", (*_SHAPE, 4), 9)
    none = np.concatenate([four[..., :3], np.zeros((*_SHAPE, 1), np.uint8)], 2)
    for name, write in (("bmp", bmp), ("tga", tga)):
        cases.append((f"{name} with opacity", write(four), on_white(four[..., :3], four[..., 3] / 255)))
        cases.append((f"{name} with an opacity of 0", write(none), four[..., :3]))
    return cases
