"""Datasets: listing and reading of the input, the output folder of a run, exports, and training samples.

An output folder holds:

    OUTPUT/run.json                      settings, versions, totals and sessions
    OUTPUT/manifest/000000.parquet       one row per partition: its number, and where the bytes of its images are
    OUTPUT/regions/part-000000.parquet   one file per partition, one row per image (``captions/`` of ``ureca caption``)
    OUTPUT/lease.json                    while a session runs: its lease
    OUTPUT/crash_log/                    while a session runs: the items that its processes have in progress

A *partition* is a fixed group of images that is processed, and written, as a whole. The name of its file follows from
its number, and the file appears complete or not at all. However often workers are killed, retried or raced, each image
is in the dataset exactly once, and the unfinished work is the set of partitions without a file.
"""
