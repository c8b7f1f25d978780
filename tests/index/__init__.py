"""Tests of the index of an output."""
