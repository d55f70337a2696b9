"""The service without its server: what requests and answers hold, and how images and regions in them are decoded."""
