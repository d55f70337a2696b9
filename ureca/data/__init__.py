"""Output folders: what is to be done, what is done, and what it says.

    OUTPUT/run.json                  settings, versions, totals, sessions
    OUTPUT/manifest/000000.parquet   one row a unit: its number and where the bytes of its images are
    OUTPUT/regions/part-000000.parquet   one file a unit: one row an image (``captions/`` where captions are written)
    OUTPUT/claim.json                only while a session runs: which one
    OUTPUT/attempts/                 only while a session runs: what its processes are working on

A *unit* is a fixed group of images that is worked on, and written, as a whole. Its file's name follows from its
number, and the file appears complete or not at all. So whatever is killed, repeated or raced, each image is in the
dataset exactly once, and what is missing is the set of units without a file.
"""
