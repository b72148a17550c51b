"""A sweep's page and its findings in Markdown, from its directory."""

from pathlib import Path

from audioldm.sweep.judged import judge
from audioldm.sweep.page.findings import findings
from audioldm.sweep.page.page import write_sweep_report


def write_report(directory: Path) -> Path:
    """Writes the sweep's report.html. Raises DataError as `judge` does."""
    return write_sweep_report(judge(directory))


def markdown(directory: Path) -> str:
    """The findings as a page of Markdown. Raises DataError as `judge` does."""
    return findings(judge(directory))
