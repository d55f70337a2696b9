"""Training on Ray Train: workers, DeepSpeed engine, packed data and the run's folder."""
