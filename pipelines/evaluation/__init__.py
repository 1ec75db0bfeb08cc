"""An evaluation's parts: its file, a table's outputs, the references, scores by task and slice, checks, the report."""
