"""The captioning service without its HTTP server: schemas, request decoding, continuous batching and the web page."""
