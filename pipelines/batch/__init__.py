"""Parts shared by the batch commands: runner, graph, actors, resources, progress and metrics."""
