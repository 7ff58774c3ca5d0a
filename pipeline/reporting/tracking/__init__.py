"""Recording a report in MLflow: runs, data set, model and model registry."""
