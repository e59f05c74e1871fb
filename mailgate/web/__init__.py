"""The metrics and administration listeners."""
