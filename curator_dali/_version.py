"""The version of curator_dali."""

__version__ = "0.1.0"
