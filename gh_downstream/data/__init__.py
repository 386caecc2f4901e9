"""What the data of all workloads have in common.

=============  =====================================================================================
``images``     image files, listed, or read with an error that names them; also those in other files
``generated``  folders that a generator of data may write to
``skipped``    files that are done without: counted, named, and too many of them refused
=============  =====================================================================================
"""
