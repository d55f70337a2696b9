"""The HTTP service on Ray Serve: app, middleware, deployments and batch jobs."""
