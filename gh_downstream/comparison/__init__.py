"""Honest comparisons of weightings: the same runs with each of them, over several seeds, on any workload.

==================  ===========================================================================
``weightings``      how weightings are written on the command line
``tasks``           what can be compared: tasks by name, and the engines that train them
``grid``            every task and baseline with every weighting, scope and seed
``results``         numbers of the runs, paired differences, tables
``findings``        what the numbers say, in words
``figures``         curves, angles, weights, the sensitivity to lambda, the controlled problems
``controlled``      two convex losses in the plane, on which everything is known
``report``          all of it in one HTML report, and in Markdown
==================  ===========================================================================

It lies above the workloads and imports each of them when a task of it is compared.
"""
