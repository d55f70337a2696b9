"""The service without its server: requests, answers, decoding, batching, and the page."""
