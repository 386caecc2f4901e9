"""The command ``gh-downstream``: a file for each group of commands.

==============  ===================================================================================
``main``        :func:`run` and :func:`main`
``app``         the table of the commands
``errors``      what a user's mistake looks like
``engines``     which engine trains a configuration
``train``       ``train``, ``evaluate``, ``export``
``search``      ``search``
``benchmark``   ``benchmark``
``compare``     ``compare``
``demo``        ``demo``
``data``        ``data make``, ``data check``, ``data fog``
``configs``     ``configs list``, ``configs show``, ``configs explain``
``explain``     the documentation of a key
``train_net``   Detectron2's own command line, as ``tools/train_net.py`` has it
==============  ===================================================================================

It needs typer, which comes with every extra of a workload: ``pip install 'gh_downstream[training]'``.
"""
