"""The command line ``gh-downstream``, a file for each group of commands."""
