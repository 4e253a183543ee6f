"""The HTTP sink, based on aiohttp: records in POST requests."""
