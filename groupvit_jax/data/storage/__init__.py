"""Local paths and object stores: objects, retries, and the local cache."""
