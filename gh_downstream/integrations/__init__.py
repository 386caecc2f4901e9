"""Gradient harmonization in the training loops of other libraries, each in the module of the library's name.

=========================  ============================================================================================
``transformers``           :class:`GradientHarmonizationMixin`: a ``Trainer`` with two losses, exact at the parameters
``open_clip_train``        :func:`train`: its ``main`` with a second loss on the features, harmonized there
``sentence_transformers``  :class:`HarmonizedLoss`: two losses on the embeddings, harmonized there
``log``                    :class:`ReportLog`: the log of the latter two, whose losses cannot reach their trainer's
=========================  ============================================================================================

Only ``plugins.X`` imports ``X``. A trainer that is not here needs no plugin: :func:`~gh_downstream.fork` works inside
any model or loss, :class:`~gh_downstream.Harmonizer` in any loop of your own.
"""
