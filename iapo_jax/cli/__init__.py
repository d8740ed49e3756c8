"""The command `iapo`, one file for each of its commands."""
