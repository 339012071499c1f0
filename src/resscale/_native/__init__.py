"""The native decoder: its C sources, and its module `jpeg` where that was built."""
