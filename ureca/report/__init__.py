"""A run as one self-contained HTML page: every image with its regions, captions, tree, failures and figures."""

from ureca.report.figures import Figures
from ureca.report.page import write_report

__all__ = ["Figures", "write_report"]
