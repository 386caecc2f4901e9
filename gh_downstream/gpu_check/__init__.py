"""What one GPU shows of harmonization in a few minutes: that it is exact, that it never waits, and what it costs.

=============  =====================================================================================
``running``    the parts, each in a process of its own with a limit, and their report as it grows
``setting``    on what device and at what size a part runs, and checks against a bound
``networks``   the network that is measured, on several trunks, with random weights
``exact``      values against float64 on the CPU, overflows, synchronization
``timing``     what the harmonizer itself launches, and the clock
``machine``    versions and clocks, collectives, recall, tests, steps and trainings of the engines
=============  =====================================================================================

A part takes what is installed (torch alone is enough for most of them) and says what it needs otherwise.
"""
