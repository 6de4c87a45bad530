"""The report of a run: one self-contained HTML file that shows what was trained, on what, and what came of it."""

from launch.report.page import Generation, ParameterRow, Report, TrainingExample, render

__all__ = ["Generation", "ParameterRow", "Report", "TrainingExample", "render"]
