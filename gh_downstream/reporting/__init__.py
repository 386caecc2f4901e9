"""What a run leaves to read: tables, plots and one HTML report.

=============  =====================================================================================
``tables``     :class:`Table`: one table for the terminal, Markdown and JSON
``plots``      the look that all figures have
``html``       a report in one self-contained HTML file
``results``    :class:`ResultStore`: the results of a run in its output folder
=============  =====================================================================================

``plots`` (which needs matplotlib) and ``html`` (which needs jinja2 too) are imported by name.
"""

from gh_downstream.reporting.results import ResultStore
from gh_downstream.reporting.tables import Cell, Spread, Table, comparable_runs, escape_markdown, fixed

__all__ = ["Cell", "ResultStore", "Spread", "Table", "comparable_runs", "escape_markdown", "fixed"]
