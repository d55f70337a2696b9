"""Settings of each verb: one validated, frozen model, read from defaults < YAML < environment < flags."""
