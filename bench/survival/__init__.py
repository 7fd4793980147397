"""Scenarios in which processes die, sleep, drain or run out of disk, each returning figures."""
