"""Let one virtual environment see the packages of another, but not its copy of wsss-blocks.

Usage: borrow_site_packages.py LENDER BORROWER. Saves installing several GB of torch twice just to
import a freshly built wheel.
"""

import sys
from pathlib import Path


def site_packages(venv: str) -> Path:
    return next((Path(venv).resolve() / "lib").glob("python3.*/site-packages"))


if __name__ == "__main__":
    lender, borrower = map(site_packages, sys.argv[1:3])
    # A plain path line comes after the borrower's own packages, and .pth files inside it (the
    # lender's editable install) are not followed.
    (borrower / "borrowed.pth").write_text(f"{lender}\n")
