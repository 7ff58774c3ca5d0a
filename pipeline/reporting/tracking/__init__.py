"""A report in MLflow: runs, data set, model and registry."""
