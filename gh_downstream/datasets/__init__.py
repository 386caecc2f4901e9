"""What the data of all workloads have in common.

=============  =====================================================================================
``images``     image files, and images that lie in other files, read with an error that names them
``generated``  folders that a generator of data may write to
``skipped``    files that are done without: counted, named, and too many of them refused
=============  =====================================================================================
"""
