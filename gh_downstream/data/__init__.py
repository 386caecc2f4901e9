"""What the data of all workloads have in common.

=============  =====================================================================================
``images``     image files, listed, or read the same way by all; also those in other files
``paths``      paths that data name: regular files, in their folder, safe to print
``generated``  folders that a generator of data may write to
``skipped``    files that are done without: counted, named, and too many of them refused
=============  =====================================================================================
"""
