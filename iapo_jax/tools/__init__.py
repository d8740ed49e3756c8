"""Tools for policies and runs that already exist."""
