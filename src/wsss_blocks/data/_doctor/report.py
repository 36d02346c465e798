"""What an examination found, as text to read and as a dictionary."""

from collections import Counter
from dataclasses import dataclass

from wsss_blocks.data._doctor.kinds import KINDS, Finding, shown
from wsss_blocks.data._doctor.matching import SplitCounts

__all__ = ["Examination"]


@dataclass(frozen=True)
class Examination:
    """What :func:`~wsss_blocks.data.examine` found.

    Attributes:
        root: the folder.
        layout: how it is laid out.
        names: the classes; empty if nothing names them.
        splits: for each split its numbers of images, label rows and masks.
        images: number of images that were read.
        findings: everything that is wrong, in the order of the kinds.
        complete: False if it was interrupted.
    """

    root: str
    layout: str
    names: tuple[str, ...]
    splits: dict[str, SplitCounts]
    images: int
    findings: list[Finding]
    complete: bool = True

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings of each kind that occurs."""
        return dict(Counter(finding.kind for finding in self.findings))

    def to_dict(self) -> dict[str, object]:
        """Return everything as what JSON can hold."""
        return {
            "root": self.root,
            "layout": self.layout,
            "complete": self.complete,
            "names": list(self.names),
            "splits": {name: counts._asdict() for name, counts in self.splits.items()},
            "images": self.images,
            "counts": self.counts,
            "findings": [finding._asdict() for finding in self.findings],
        }

    def describe(self, *, limit: int | None = 5) -> str:
        """Return a report of lines to read.

        Args:
            limit: paths to list of each kind; None for all.
        """
        lines = [shown(f"{self.root} ({self.layout} layout, {len(self.names)} classes)")]
        width = max((len(name) for name in self.splits), default=0)
        for name, (images, labelled, masks) in self.splits.items():
            lines.append(f"  {name:{width}}  {images} images, {labelled} labelled, {masks} masks")
        for kind, count in self.counts.items():
            lines += ["", f"{kind}: {count} ({'; '.join(KINDS[kind])})"]
            found = [finding for finding in self.findings if finding.kind == kind]
            lines += [f"  {shown(f.path)}: {shown(f.detail)}" for f in found[:limit]]
            if limit is not None and count > limit:
                lines.append(f"  ... and {count - limit} more")
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """Return the result in one line."""
        read = f"{self.images} images read" + ("" if self.complete else ", then interrupted")
        if not self.findings:
            return f"{read}: nothing found."
        kinds = f" of {len(self.counts)} kinds" if len(self.counts) > 1 else ""
        return f"{read}: {len(self.findings)} finding{'s' * (len(self.findings) > 1)}{kinds}."
