"""The command ``gh-downstream``: a file for each group of commands."""
