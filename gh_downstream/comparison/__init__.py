"""Honest comparisons of weightings: the same runs with each of them, over several seeds, on any workload.

==================  ===========================================================================
``weightings``      how weightings are written on the command line
``tasks``           what can be compared: tasks by name, and the engines that train them
``grid``            every task and baseline with every weighting, scope and seed
``results``         numbers of the runs, paired differences, tables
==================  ===========================================================================

It lies above the workloads and imports each of them when a task of it is compared.
"""
