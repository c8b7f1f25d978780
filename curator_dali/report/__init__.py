"""A curation's report: `report.html`, and the samples that a `Report` counts."""
