"""Gradient harmonization in the training loops of other libraries, each in the module of the library's name.

=========================  ============================================================================================
``detectron2``             a hook, or one call, for any trainer of Detectron2: exact at the parameters
``transformers``           :class:`GradientHarmonizationMixin`: a ``Trainer`` with two losses, exact at the parameters
``lightning``              :class:`GradientHarmonizationMixin`: a ``LightningModule`` with two losses, likewise
``open_clip_train``        :func:`train`: its ``main`` with a second loss on the features, harmonized there
``sentence_transformers``  :class:`HarmonizedLoss`: two losses on the embeddings, harmonized there
``joint_loss``             :class:`JointLoss`: what the two mixins share, for any trainer that calls ``loss.backward()``
``report_log``             :class:`ReportLog`: the log of the losses whose measurements cannot reach their trainer's
=========================  ============================================================================================

Each imports its own library and :mod:`gh_downstream.harmonization`, nothing else. A trainer that is not here needs no
integration: :func:`~gh_downstream.fork` works inside any model or loss, :class:`~gh_downstream.Harmonizer` in any loop.
"""
