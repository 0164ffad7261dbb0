"""Tracking in MLflow: experiment = study, parent run = variant with mean and spread, child runs = seeds."""
