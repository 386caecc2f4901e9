"""Trainings over weightings and seeds on every engine, and their report: comparisons and demos.

==================  ===========================================================================
``engines``         what trains a configuration: classification, retrieval, native (of detection), Detectron2
``presets``         what can be compared and shown by name
``weightings``      words of weightings as a comparison takes them
``runs``            the one loop: every preset and method with every weighting, scope and seed
``results``         numbers of the runs, paired differences, tables
``figures``         curves, angles, weights, the sensitivity to lambda, the controlled problems
``controlled``      two convex losses in the plane, on which everything is known
``showing``         tables and pictures of a workload
``report``          all of it in one HTML report, and in Markdown
==================  ===========================================================================

It lies above the workloads and imports each of them when a preset of it is trained.
"""
