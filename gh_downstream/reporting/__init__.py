"""What a run leaves to read: tables, plots and one HTML report.

=============  =====================================================================================
``tables``     :class:`Table`: one table for the terminal, Markdown and JSON
``plots``      figures of metrics, angles and weights over a training run
``gradients``  what harmonization did to the gradients of a training
``geometry``   the picture of what harmonization does to two gradients
``html``       a report in one self-contained HTML file
``results``    :class:`ResultStore`: the results of a run in its output folder
=============  =====================================================================================

The modules ``plots`` and ``geometry`` (matplotlib), ``html`` (jinja2) and ``gradients`` (both) are imported by name: a
table needs none of it.
"""

from gh_downstream.reporting.results import ResultStore
from gh_downstream.reporting.tables import Cell, Spread, Table, comparable_runs

__all__ = ["Cell", "ResultStore", "Spread", "Table", "comparable_runs"]
