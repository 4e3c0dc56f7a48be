"""``report.html``: a run in one file that needs nothing else, on a desk or a phone, by day or by night."""

from pathlib import Path

from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.files import write_text
from torchqat.reports.page import page_of
from torchqat.reports.plots import pictures
from torchqat.reports.report import REPORT, Report, read_report


def write_html(folder: Path) -> Path:
    """Write ``report.html`` from what the run in ``folder`` has measured, and return it.

    Raises:
        UserError: The folder has no report, or a library that draws it is not installed.
    """
    page = _template().render(page_of(folder, load_report(folder)))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def write_pictures(folder: Path, output: Path) -> list[Path]:
    """Each picture of the run as SVG and PNG in ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    written, report = [], load_report(folder)
    for form in ("svg", "png"):
        for name, picture in pictures(report, folder, form).items():
            # Alone, an SVG has no page to take its ink from.
            alone = picture.replace(b"currentColor", b"#0b0b0b") if form == "svg" else picture
            written.append(output / f"{name}.{form}")
            written[-1].write_bytes(alone)
    return written


def load_report(folder: Path) -> Report:
    """The report of a run.

    Raises:
        UserError: There is none.
    """
    if not (folder / REPORT).is_file():
        raise UserError(f"RUN must be the folder of a run, with a {REPORT}, but {folder} is not.")
    return read_report(folder)


def _template():
    with needs("report", "A report"):
        import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html")
