"""The report: one HTML page about a run, and pictures of cases."""
