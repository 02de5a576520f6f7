"""OpenAI's API over HTTP, on the engine: the only importer of starlette, uvicorn and msgspec."""
