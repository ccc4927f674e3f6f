"""Pictures, and the same in files that hold many."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def pictures(count: int, suffixes: tuple[str, ...] = ("jpg", "png", "webp")) -> dict[str, bytes]:
    """Files of noise, by name; each of its own size."""
    files: dict[str, bytes] = {}
    for i in range(count):
        suffix, file = suffixes[i % len(suffixes)], io.BytesIO()
        noise = np.random.default_rng(i).integers(0, 256, (20 + i % 7, 30 + i % 5, 3), np.uint8)
        Image.fromarray(noise).save(file, {"jpg": "JPEG"}.get(suffix, suffix))
        files[f"{i:06}.{suffix}"] = file.getvalue()
    return files


def write_tar(path: Path, files: Mapping[str, bytes], **options: int) -> Path:
    """A tar of files, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
