"""Training, one verb a file: `python -m rodin_model.train.<verb>`."""
