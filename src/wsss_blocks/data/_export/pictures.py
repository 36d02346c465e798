"""Masks as indexed PNG files: in a folder, in the layout of mmseg, for the server of VOC."""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from wsss_blocks.data._export.options import Options
from wsss_blocks.data._export.source import IGNORED, Mask
from wsss_blocks.data.images import write_mask
from wsss_blocks.data.names import VOC_NAMES, VOC_SPOKEN_NAMES, voc_palette

__all__ = ["MMSegWriter", "VocPngWriter", "VocServerWriter", "copy_image"]


class VocPngWriter:
    """Write ``ID.png``."""

    def __init__(self, place: Path, options: Options) -> None:
        self.place = place

    def convert(self, mask: Mask) -> bytes:
        """Write a mask."""
        write_mask(self.place / f"{mask.name}.png", mask.ids)
        return b""

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Nothing is shared."""


class VocServerWriter:
    """Write a tar.gz as the evaluation server of VOC unpacks it, the same bytes each time."""

    def __init__(self, place: Path, options: Options) -> None:
        if options.names not in (VOC_NAMES, VOC_SPOKEN_NAMES):
            raise ValueError(
                "names must be VOC's 20 classes for voc-server-tar, "
                f"got {len(options.names)}: {', '.join(options.names[:3])}, ..."
            )
        self.place = place
        self.folder = f"results/VOC2012/Segmentation/{options.competition}_cls"

    def convert(self, mask: Mask) -> bytes:
        """Return a mask as a PNG file."""
        if len(PurePosixPath(mask.name).parts) > 1:
            raise ValueError(f"mask {mask.name!r} must not lie in a folder for VOC's server.")
        if (mask.ids == IGNORED).any():
            raise ValueError(
                f"mask {mask.name!r} must give each pixel a class for VOC's server, got ignored "
                "pixels: it refuses them."
            )
        from PIL import Image

        image = Image.fromarray(mask.ids)
        image.putpalette(voc_palette().flatten().tolist())
        written = io.BytesIO()
        image.save(written, format="PNG")
        return written.getvalue()

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Write the archive, without times and owners."""
        with (
            self.place.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name, content in results.items():
                entry = tarfile.TarInfo(f"{self.folder}/{name}.png")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


class MMSegWriter:
    """Write ``ann_dir/SPLIT/ID.png``, copies of images in ``img_dir/SPLIT``, ``dataset.json``."""

    def __init__(self, place: Path, options: Options) -> None:
        self.place, self.options = place, options

    def convert(self, mask: Mask) -> bytes:
        """Write a mask, copy its image and return the suffix of that."""
        split = self.options.split(mask.name)
        write_mask(self.place / "ann_dir" / split / f"{mask.name}.png", mask.ids)
        copy_image(mask, self.place / "img_dir" / split)
        return Path(mask.file).suffix.encode()

    def finish(self, results: Mapping[str, bytes]) -> None:
        """Write classes and colours in the order of the ids, background first."""
        first: dict[str, str] = {}
        for name, suffix in results.items():
            first.setdefault(suffix.decode(), name)
        if len(first) > 1:
            found = ", ".join(f"{name}{suffix}" for suffix, name in first.items())
            raise ValueError(f"images must all have one suffix for mmseg, got {found}.")
        meta = {
            "classes": ["background", *self.options.names],
            "palette": voc_palette(len(self.options.names) + 1).tolist(),
            "reduce_zero_label": False,
            "ignore_index": IGNORED,
            "img_suffix": next(iter(first)),
            "seg_map_suffix": ".png",
            "data_prefix": {
                split: {"img_path": f"img_dir/{split}", "seg_map_path": f"ann_dir/{split}"}
                for split in sorted({self.options.split(name) for name in results})
            },
        }
        text = json.dumps(meta, indent=1, ensure_ascii=False)
        (self.place / "dataset.json").write_text(text + "\n", encoding="utf-8")


def copy_image(mask: Mask, folder: Path) -> None:
    """Copy the photograph of a mask, if it is known, into a folder."""
    if mask.image is not None:
        target = folder / f"{mask.name}{mask.image.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(mask.image, target)
