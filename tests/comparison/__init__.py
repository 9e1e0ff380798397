"""Tests of the comparison of training methods."""
