"""The command ``gh-downstream``: a file for each group of commands.

==============  ===================================================================================
``main``        :func:`run` and :func:`main`, and what a user's mistake looks like
``app``         the table of the commands
``train``       ``train``, ``evaluate``, ``export``
``search``      ``search``
``benchmark``   ``benchmark``
``compare``     ``compare``
``demo``        ``demo``
``data``        ``data make``, ``data check``, ``data fog``
``configs``     ``configs list``, ``configs show``, ``configs explain``
``explain``     the documentation of a key
``train_net``   Detectron2's own command line, for ``python -m``
==============  ===================================================================================

It needs typer, which comes with every extra of a workload: ``pip install 'gh_downstream[training]'``.
"""
